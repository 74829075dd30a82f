"""Rows in flight, and the one forward that takes a group of them a step further.

Nothing of a row depends on its neighbours: noise comes from its own generator on the CPU, guidance
and schedule are its own numbers, and its users' tokens touch its own queries only.

Shapes: B rows, C·H·W a latent, U users of a row, T tokens of a user, 2·P their keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ppd_serve.diffusion.backbone import Backbone, LaterStage, Stage, Text
from ppd_serve.diffusion.request import GenerationRequest
from ppd_serve.diffusion.schedules import Schedule, advance
from ppd_serve.diffusion.ticket import Progress, Ticket
from ppd_serve.diffusion.turns import Group
from ppd_serve.diffusion.user_attention import UserAdapter


@dataclass(eq=False)
class Row:
    """One picture being made, in one stage after the other. ``users`` is None without a user.

    The fields from ``stage`` on are set by ``begin``: ``request`` is what is asked of that stage,
    ``negative`` None where nothing is guided.
    """

    ticket: Ticket
    generator: torch.Generator
    users_UT2P: Tensor | None
    zero_UT2P: Tensor | None  # for the unguided half, where zero is not nobody (``has_biases``)
    weights_U: Tensor
    later: tuple[LaterStage, ...]
    steps: int  # of all stages together
    started: float
    done: int = 0  # steps, of all stages together
    drawn: Tensor | None = None  # noise for the step to come

    stage: Stage = field(init=False)
    request: GenerationRequest = field(init=False)
    schedule: Schedule = field(init=False)
    x_CHW: Tensor = field(init=False)
    x0_CHW: Tensor = field(init=False)
    text: Text = field(init=False)
    negative: Text | None = field(init=False)
    index: int = field(init=False)  # the next step of this stage

    def begin(
        self, stage: Stage, request: GenerationRequest, text: Text, negative: Text | None
    ) -> None:
        """Draw the noise that ``stage`` starts from."""
        self.stage, self.request, self.text, self.negative = stage, request, text, negative
        self.schedule, self.index = stage.schedule(request.sampler, request.steps), 0
        shape = stage.latent_shape(request.width, request.height)
        self.x_CHW = self.x0_CHW = torch.zeros(shape, device=stage.device)
        self.x_CHW, self.drawn = self.noise() * self.schedule.start, None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x_CHW.shape)

    @property
    def group(self) -> Group:
        return Group(self.stage, self.shape)

    @property
    def work(self) -> float:
        return self.request.width * self.request.height

    @property
    def stage_finished(self) -> bool:
        return self.index == len(self.schedule.steps)

    @property
    def latent_CHW(self) -> Tensor:
        """What a stage that is finished has made."""
        return self.x_CHW * self.schedule.end

    @property
    def guidance(self) -> Text | None:
        """What the next step is guided away from; None where guidance does not apply."""
        low, high = self.request.guidance_interval
        return self.negative if low <= self.index / len(self.schedule.steps) < high else None

    @property
    def wants_preview(self) -> bool:
        """After the step just done. Only the last stage's latents are those a decoder knows."""
        every = self.request.preview_every
        return not self.later and every > 0 and self.index % every == 0

    def noise(self) -> Tensor:
        """Drawn on the CPU in float32, so it is the same on every device; and the same again until
        the step it was drawn for is done, so a step that failed can be taken again."""
        if self.drawn is None:
            self.drawn = torch.randn(self.shape, generator=self.generator, dtype=torch.float32)
        return self.drawn.to(self.x_CHW.device)

    def moved(self, x_CHW: Tensor, x0_CHW: Tensor) -> None:
        """A step is done."""
        self.x_CHW, self.x0_CHW, self.drawn = x_CHW, x0_CHW, None
        self.index += 1
        self.done += 1

    def progress(self, preview: np.ndarray | None) -> Progress:
        return Progress(self.done, self.steps, preview)


def start_row(ticket: Ticket, backbone: Backbone, adapter: UserAdapter | None) -> Row:
    """Encode the prompts, project the users, draw the first noise."""
    started = time.monotonic()
    request = ticket.request
    weights = [weight * request.preference_scale for _, weight in request.users]
    present = [i for i, weight in enumerate(weights) if weight and request.users[i][0].any()]
    users = zero = None
    if adapter is not None and present:
        embeddings = np.stack([request.users[i][0] for i in present])
        known = torch.from_numpy(embeddings).float().to(backbone.device)
        users = adapter.project(known)
        if adapter.has_biases:
            zero = adapter.project(torch.zeros_like(known))
    row = Row(
        ticket=ticket,
        generator=torch.Generator().manual_seed(request.seed),
        users_UT2P=users,
        zero_UT2P=zero,
        weights_U=torch.tensor([weights[i] for i in present], device=backbone.device),
        later=backbone.later,
        steps=request.steps + sum(stage.asked(request).steps for stage in backbone.later),
        started=started,
    )
    # As in diffusers, guidance of 1 or less asks for no second forward.
    guided = request.guidance_scale > 1
    negative = backbone.encode(request.negative_prompt or None) if guided else None
    row.begin(backbone, request, backbone.encode(request.prompt), negative)
    return row


def begin_next_stage(row: Row, backbone: Backbone) -> None:
    """From the latent of the stage that is finished. Noise goes on from the row's own generator."""
    stage, *later = row.later
    request, latent_BCHW = stage.asked(row.ticket.request), row.latent_CHW[None]
    text, negative = stage.told(backbone.encode(request.prompt), latent_BCHW), None
    if request.guidance_scale > 1:
        nothing = torch.zeros_like(latent_BCHW)
        negative = stage.told(backbone.encode(request.negative_prompt or None), nothing)
    row.later, row.users_UT2P, row.zero_UT2P = tuple(later), None, None
    row.begin(stage, request, text, negative)


def step_rows(rows: Sequence[Row], adapter: UserAdapter | None) -> list[bool]:
    """One forward for all ``rows`` (of one group), each at its own timestep.

    Rows that are guided at this step take part twice: with their prompt and users, and with the
    negative prompt and nobody (or zero, where that is not nobody). Returns which of them are
    finite. On an exception no row has changed, and the step can be taken again.
    """
    B, stage, device = len(rows), rows[0].stage, rows[0].stage.device
    lines = [row.schedule.steps[row.index] for row in rows]
    negatives = {i: text for i, row in enumerate(rows) if (text := row.guidance) is not None}
    guided = list(negatives)
    part = [*range(B), *guided]
    spare = stage.bucket(len(part)) - len(part)
    part += [0] * spare

    x = torch.stack([row.x_CHW for row in rows])
    timesteps = torch.tensor([lines[i].timestep for i in part], device=device)
    texts = [*(row.text for row in rows), *negatives.values(), *[rows[0].text] * spare]
    text = {key: torch.cat([each[key] for each in texts]) for key in texts[0]}
    if adapter is None:
        m = stage.denoise(x[part], timesteps, text).float()
    else:
        with adapter.condition(*_users(rows, guided)):
            m = stage.denoise(x[part], timesteps, text).float()
    if guided:
        requests = [rows[i].request for i in guided]
        scale = torch.tensor([r.guidance_scale for r in requests], device=device)
        rescale = torch.tensor([r.guidance_rescale for r in requests], device=device)
        m_negative = m[B : B + len(guided)]
        m[guided] = _guide(m[guided], m_negative, scale, rescale)

    x0_prev = torch.stack([row.x0_CHW for row in rows])
    fresh = [
        row.noise() if row.schedule.stochastic else torch.zeros_like(row.x_CHW) for row in rows
    ]
    x, x0 = advance(lines, x, m[:B], x0_prev, torch.stack(fresh))
    # Asked before any row moves: a GPU tells of a failure only when it is waited for.
    finite: list[bool] = x.isfinite().flatten(1).all(1).tolist()
    for i, row in enumerate(rows):
        row.moved(x[i], x0[i])
    return finite


def final_latents(rows: Sequence[Row]) -> Tensor:
    """``[B, C, H, W]`` of rows whose last stage is finished."""
    return torch.stack([row.latent_CHW for row in rows])


def _users(rows: Sequence[Row], guided: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
    """Keys and values ``[B, U, T, 2, P]`` and weights ``[B, U]`` (0 for who is not there) of the
    first B of the batch: the rest is the unguided half, and copies. That half, of the ``guided``
    rows, is part of B only where zero is not nobody. B comes in as few sizes as the batch's."""
    most = max((len(row.weights_U) for row in rows if row.users_UT2P is not None), default=0)
    if not most:
        return None, None
    first = next(row.users_UT2P for row in rows if row.users_UT2P is not None)
    halves = [(row.users_UT2P, row.weights_U) for row in rows]
    if any(row.zero_UT2P is not None for row in rows):
        halves += [(rows[i].zero_UT2P, rows[i].weights_U) for i in guided]
    B = rows[0].stage.bucket(len(halves))
    users = first.new_zeros(B, most, *first.shape[1:])
    weights = first.new_zeros(B, most, dtype=torch.float32)
    for i, (own, weight) in enumerate(halves):
        if own is not None:
            users[i, : len(own)] = own
            weights[i, : len(own)] = weight
    return users, weights


def _guide(m: Tensor, negative: Tensor, scale_B: Tensor, rescale_B: Tensor) -> Tensor:
    """Classifier-free guidance, then the share ``rescale`` of it brought back to ``m``'s own spread
    (arXiv 2305.08891, section 3.4), as diffusers' ``rescale_noise_cfg``."""
    scale, rescale = (s.view(-1, 1, 1, 1) for s in (scale_B, rescale_B))
    guided = negative + scale * (m - negative)
    spread = guided.flatten(1).std(1).clamp_min(1e-12)
    ratio = (m.flatten(1).std(1) / spread).view(-1, 1, 1, 1)
    return guided * (rescale * ratio + (1 - rescale))
