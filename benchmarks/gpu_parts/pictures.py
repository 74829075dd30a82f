"""What a picture costs: batches, users, stock diffusers, who joins, and the share of the peak."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.bench_engine import FIRST, WHOLE, joiner
from benchmarks.gpu_parts.measure import forget_peak, peak_gb, tflop, times
from benchmarks.gpu_parts.subject import Subject, drawn
from benchmarks.report import Figure, spread
from ppd_serve.diffusion.engine import Engine

Table = dict[str, Figure | float]
SHARE_GOAL = "≥ 0.45"


def pictures(
    subject: Subject, batches: Sequence[int], peak: float, repeats: int, *, compiled: bool
) -> dict[str, Table]:
    """``peak``: TFLOP/s of a matrix product, measured in this run."""
    stock: dict[str, Table] = {}
    if not compiled:  # stock is measured once, and before the adapter is on
        stock = {"stock diffusers": _stock(subject, max(batches), repeats)}
    work = tflop_of_a_picture(subject)
    if compiled:
        subject.compile()
    with subject.engine(max(batches)) as engine:
        personal = _batches(subject, engine, batches, repeats)
        most = min(personal, key=lambda n: personal[n].value)  # the best batch
        told: Table = {
            **{f"s a picture, {n} together": each for n, each in personal.items()},
            **{f"pictures a second, {n} together": 1 / s.value for n, s in personal.items()},
            "TFLOP of a picture": work,
            f"share of the matmul peak, {most} together": Figure(
                work / personal[most].value / peak, goal=SHARE_GOAL
            ),
        }
        if stock:
            alone = stock["stock diffusers"]["s a picture, one after the other"]
            assert isinstance(alone, Figure)
            told[f"times faster than stock, {most} together"] = Figure(
                alone.value / personal[most].value, goal="≥ 2"
            )
        users = _cost_of_users(subject, engine, (min(batches), max(batches)), repeats)
        joiner(subject.request, engine, 0.0)  # the first forwards of two pictures prepare kernels
        joins = [joiner(subject.request, engine, phase) for phase in (0.25, 0.5, 0.75)]
        memory = _memory(subject, engine, batches)
    name = "our engine, compiled" if compiled else "our engine"
    goals = {FIRST: "≤ 1.5", WHOLE: "≤ 1.15"}
    return {
        **stock,
        name: told,
        "cost of the user branch": users,
        "joining at any step": {
            name: spread([each[name] for each in joins], goals.get(name, "")) for name in joins[0]
        },
        **({"memory, GB": memory} if memory else {}),
    }


def tflop_of_a_picture(subject: Subject) -> float:
    """Every step's forward, twice where it is guided, of every stage; and the autoencoder's."""
    x, t, text = subject.inputs(1)
    work = 2 * subject.defaults.steps * tflop(lambda: subject.backbone.denoise(x, t, text))
    for stage in subject.backbone.later:
        asked, told = stage.asked(subject.request()), stage.told(text, x)
        shape = stage.latent_shape(*subject.defaults.sizes[0])
        x = torch.randn(1, *shape, device=subject.device)
        forward = tflop(lambda s=stage, x=x, told=told: s.denoise(x, t, told))  # type: ignore[misc]
        work += asked.steps * (2 if asked.guidance_scale > 1 else 1) * forward
    return work + tflop(lambda: subject.backbone.decode(x))


def _stock(subject: Subject, most: int, repeats: int) -> Table:
    one = times(subject.stock, subject.device, repeats)
    together = times(lambda: subject.stock(most), subject.device, 1)
    return {
        "s a picture, one after the other": spread(one),
        f"s a picture, {most} of one prompt together": together[0] / most,
    }


def _batches(
    subject: Subject, engine: Engine, batches: Sequence[int], repeats: int
) -> dict[int, Figure]:
    def seconds(count: int) -> Figure:
        drawn(engine, subject.personal(count, steps=1))  # what it compiles, and its memory
        took = times(
            lambda: drawn(engine, subject.personal(count)), subject.device, repeats, warm=True
        )
        return spread([each / count for each in took])

    return {count: seconds(count) for count in batches}


def _cost_of_users(subject: Subject, engine: Engine, batches: Sequence[int], repeats: int) -> Table:
    """In turns, so that a drift of the clock meets both."""
    found: Table = {}
    for count in dict.fromkeys(batches):
        wanted = {
            "nobody's": [subject.request(seed) for seed in range(count)],
            "personal": subject.personal(count),
        }
        drawn(engine, [subject.request(seed, steps=1) for seed in range(count)])
        took: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(repeats):
            for name, requests in wanted.items():
                run = partial(drawn, engine, requests)
                took[name] += times(run, subject.device, 1, warm=True)
        pairs = zip(took["personal"], took["nobody's"], strict=True)
        found[f"{count} together"] = spread([a / b - 1 for a, b in pairs], "≤ 0.03")
    return found


def _memory(subject: Subject, engine: Engine, batches: Sequence[int]) -> Table:
    found: Table = {}
    for count in batches:
        forget_peak(subject.device)
        drawn(engine, subject.personal(count, steps=1))
        if (gb := peak_gb(subject.device)) is not None:
            found[f"{count} together, weights included"] = gb
    return found
