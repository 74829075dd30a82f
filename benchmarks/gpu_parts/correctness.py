"""Whether the pictures are right: users apart, and the same as stock diffusers draws."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_parts.subject import Subject, drawn, latents, user
from benchmarks.report import Figure
from ppd_serve.diffusion.request import GenerationRequest

Table = dict[str, Figure | float]
SEED = 5


def correctness(subject: Subject, steps: int) -> dict[str, Table]:
    """In bfloat16, whose own error against float32 on the same weights is the measure of errors."""
    exact = subject.in_float32()
    same = against_stock(subject, exact, steps)  # first: afterwards the adapter is on
    return {**same, **users_apart(subject, exact, steps)}


def against_stock(subject: Subject, exact: Subject, steps: int) -> dict[str, Table]:
    def stock(of: Subject) -> np.ndarray:
        found: np.ndarray = of.stock(steps=steps, seed=SEED).float().cpu().numpy()
        return found

    theirs, theirs_exact = stock(subject), stock(exact)
    requests = [subject.request(SEED, steps=steps)]
    with subject.engine(1) as engine:
        ours = latents(drawn(engine, requests))
    with exact.engine(1) as engine:
        ours_exact = latents(drawn(engine, requests))
    return {
        "the same picture as stock diffusers": {
            "float32: difference, share of the latent": Figure(
                apart(ours_exact, theirs_exact), goal="≤ 0.001"
            ),
            "bfloat16: our error against float32": apart(ours, theirs_exact),
            "bfloat16: stock's error against float32": apart(theirs, theirs_exact),
            "our error / stock's": Figure(
                apart(ours, theirs_exact) / apart(theirs, theirs_exact), goal="≤ 1.5"
            ),
        }
    }


def users_apart(subject: Subject, exact: Subject, steps: int) -> dict[str, Table]:
    wanted: list[GenerationRequest] = [
        subject.request(SEED, steps=steps, users=(user(1),)),
        subject.request(SEED, steps=steps, users=(user(2),)),
        subject.request(SEED, steps=steps, users=(user(1)._replace(weight=0.5), user(2))),
        subject.request(SEED, steps=steps),
        subject.request(SEED, steps=steps - 1, users=(user(3),), preference_scale=-0.5),
    ]
    nobody = subject.request(SEED, steps=steps, users=(user(1),), preference_scale=0.0)
    zero = subject.request(SEED, steps=steps, users=((0 * user(1).embedding, 1.0),))
    with exact.engine(len(wanted)) as engine:
        right = latents([drawn(engine, [one])[0] for one in wanted])
        right_together = latents(drawn(engine, wanted))
    with subject.engine(len(wanted)) as engine:
        alone = latents([drawn(engine, [one])[0] for one in wanted])
        together = latents(drawn(engine, wanted))
        off = latents(drawn(engine, [nobody]) + drawn(engine, [zero]))
    own = [apart(a, r) for a, r in zip(alone, right, strict=True)]
    beside = [apart(t, r) for t, r in zip(together, right, strict=True)]
    return {
        "users in one batch": {
            "float32: together against alone, share of the latent": Figure(
                max(apart(t, r) for t, r in zip(right_together, right, strict=True)), goal="≤ 0.001"
            ),
            "bfloat16: a lone picture's error against float32": max(own),
            "bfloat16: error together / alone": Figure(
                max(b / a for b, a in zip(beside, own, strict=True)), goal="≤ 1.5"
            ),
            "how far two users' pictures are apart": apart(alone[0], alone[1]),
            "a zero embedding, a zero scale: difference from the base": Figure(
                float(np.abs(off - alone[3]).max()), goal="≤ 0"
            ),
        }
    }


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Of two latents, relative to the second."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))
