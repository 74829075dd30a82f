"""Samplers as tables of coefficients, so that rows of different schedules share one forward.

Every step of every sampler here is linear in four things: the latent ``x``, the model's output
``m``, the previous step's estimate of the clean latent ``x0_prev``, and fresh noise::

    x0 = p·x + q·m;      x' = a·x + b·x0 + c·x0_prev + d·noise

``x`` is always what the model is fed: variance-preserving for epsilon and v-prediction (Euler's
sigma-scaled ``y`` becomes ``x = y / √(1+σ²)``), the straight path for flow. ``start`` turns unit
noise into the first ``x``, ``end`` turns the last ``x`` into the latent.

The grid of timesteps and sigmas is diffusers' own (``grids.py``); only the step itself is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from ppd_serve.diffusion.grids import Config, grid_of, is_flow, refuse
from ppd_serve.errors import InvalidInput, ReleaseError


class Step(NamedTuple):
    """One line of a table; ``timestep`` is what the model is told."""

    timestep: float
    p: float
    q: float
    a: float
    b: float
    c: float = 0.0
    d: float = 0.0


@dataclass(frozen=True)
class Schedule:
    steps: tuple[Step, ...]
    start: float = 1.0
    end: float = 1.0

    @cached_property
    def stochastic(self) -> bool:
        """Noise is then drawn for every step, though the last uses none: diffusers does so, and
        what a next stage begins with comes after it."""
        return any(step.d for step in self.steps)


def advance(
    steps: Sequence[Step], x_BCHW: Tensor, m_BCHW: Tensor, x0_prev_BCHW: Tensor, noise_BCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """One step for every row, each by its own line: the new ``x`` and the estimate ``x0``.

    Rows without a previous estimate or without noise pass zeros there. Computed in float32.
    """
    table = torch.tensor([step[1:] for step in steps], dtype=torch.float32, device=x_BCHW.device)
    p, q, a, b, c, d = table.T[..., None, None, None]
    x, m = x_BCHW.float(), m_BCHW.float()
    x0 = p * x + q * m
    return a * x + b * x0 + c * x0_prev_BCHW + d * noise_BCHW, x0


def ddim(config: Config, steps: int) -> Schedule:
    """DDIM, η = 0 (arXiv 2010.02502)."""
    grid = grid_of(DDIMScheduler, config, steps)
    stride = grid.config.num_train_timesteps // grid.num_inference_steps
    lines = []
    for t in grid.timesteps.tolist():
        now = grid.alphas_cumprod[t].item()
        to = (grid.alphas_cumprod[t - stride] if t >= stride else grid.final_alpha_cumprod).item()
        a = math.sqrt((1 - to) / (1 - now))
        lines.append(Step(t, *_x0(grid, now), a=a, b=math.sqrt(to) - a * math.sqrt(now)))
    return Schedule(tuple(lines))


def ddpm(config: Config, steps: int) -> Schedule:
    """Ancestral sampling with a fixed variance (arXiv 2006.11239, eq. 7)."""
    grid = grid_of(DDPMScheduler, config, steps)
    kind = grid.config.variance_type
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise ReleaseError(f"ddpm: variance_type {kind} is not supported")
    timesteps = grid.timesteps.tolist()
    lines = []
    for t, t_to in pairwise([*timesteps, -1]):
        now = grid.alphas_cumprod[t].item()
        to = grid.alphas_cumprod[t_to].item() if t_to >= 0 else 1.0
        beta = 1 - now / to
        variance = beta if kind == "fixed_large" else max(beta * (1 - to) / (1 - now), 1e-20)
        lines.append(
            Step(
                t,
                *_x0(grid, now),
                a=math.sqrt(now / to) * (1 - to) / (1 - now),
                b=math.sqrt(to) * beta / (1 - now),
                d=math.sqrt(variance) if t > 0 else 0.0,
            )
        )
    return Schedule(tuple(lines))


def euler(config: Config, steps: int) -> Schedule:
    """Euler's method on the probability flow: no noise, or straight lines for a flow model."""
    if is_flow(config):
        return _euler_flow(config, steps)
    return _euler(grid_of(EulerDiscreteScheduler, config, steps), ancestral=False)


def euler_ancestral(config: Config, steps: int) -> Schedule:
    """Euler down to a smaller sigma, then noise back up (k-diffusion)."""
    return _euler(grid_of(EulerAncestralDiscreteScheduler, config, steps), ancestral=True)


def dpmpp_2m(config: Config, steps: int) -> Schedule:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095, algorithm 2); flow as in diffusers."""
    flow = is_flow(config)
    form: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    if flow:
        form |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        form |= {"flow_shift": config.get("flow_shift", config.get("shift", 1.0))}
        refuse("dpmpp_2m", config, "use_dynamic_shifting", "shift_terminal")
    grid = grid_of(DPMSolverMultistepScheduler, config, steps, flow=flow, solver_order=2, **form)
    own = grid.config
    first_order_end = (
        own.euler_at_final
        or own.final_sigmas_type == "zero"
        or (own.lower_order_final and len(grid.timesteps) < 15)
    )
    sigmas = [s.item() for s in grid.sigmas]
    curve = [(1 - s, s) if flow else (_alpha(s), s * _alpha(s)) for s in sigmas]
    lines: list[Step] = []
    width_before = math.nan
    timesteps = grid.timesteps.tolist()
    for i, (t, (now, to)) in enumerate(zip(timesteps, pairwise(curve), strict=True)):
        width = _log_snr(*to) - _log_snr(*now)  # h of the paper
        gain = to[0] * -math.expm1(-width)
        last = i == len(timesteps) - 1
        # 1/(2 r0) of the paper: how far the line through the last two estimates is followed.
        lean = 0.0 if i == 0 or (last and first_order_end) else width / width_before / 2
        p, q = (1.0, -sigmas[i]) if flow else _x0(grid, now[0] ** 2)
        lines.append(Step(t, p, q, a=to[1] / now[1], b=gain * (1 + lean), c=-gain * lean))
        width_before = width
    return Schedule(tuple(lines))


def euler_karras(config: Config, steps: int) -> Schedule:
    """Euler on the sigmas of Karras et al. (arXiv 2206.00364, eq. 5)."""
    return euler(_karras("euler_karras", config), steps)


def dpmpp_2m_karras(config: Config, steps: int) -> Schedule:
    """DPM-Solver++(2M) on the sigmas of Karras et al. (arXiv 2206.00364, eq. 5)."""
    return dpmpp_2m(_karras("dpmpp_2m_karras", config), steps)


def lcm(config: Config, steps: int) -> Schedule:
    """Multistep consistency sampling (arXiv 2310.04378): the estimate, then fresh noise on it.

    For models distilled for it; others draw roughly in few steps. InvalidInput for more steps than
    the distillation had (``original_inference_steps``, 50).
    """
    most = config.get("original_inference_steps", 50)
    if steps > most:
        raise InvalidInput(f"lcm has at most {most} steps", field="steps")
    grid = grid_of(LCMScheduler, config, steps)
    lines = []
    for t, t_to in pairwise([*grid.timesteps.tolist(), None]):
        now = grid.alphas_cumprod[t].item()
        to = 1.0 if t_to is None else grid.alphas_cumprod[t_to].item()
        keep, take = (float(c) for c in grid.get_scalings_for_boundary_condition_discrete(t))
        signal = math.sqrt(to)
        lines.append(
            Step(t, *_x0(grid, now), a=signal * keep, b=signal * take, d=math.sqrt(1 - to))
        )
    return Schedule(tuple(lines))


SCHEDULES: dict[str, Callable[[Config, int], Schedule]] = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "ddpm": ddpm,
    "dpmpp_2m_karras": dpmpp_2m_karras,
    "euler_karras": euler_karras,
    "lcm": lcm,
}


def samplers(config: Config) -> tuple[str, ...]:
    """Names of the schedules that this scheduler config allows; ReleaseError if it allows none."""
    names, reasons = [], []
    for name, schedule in SCHEDULES.items():
        try:
            schedule(config, 2)
        except ReleaseError as reason:
            reasons.append(reason)
        else:
            names.append(name)
    if not names:
        raise reasons[0]
    return tuple(names)


def _euler(grid: Any, *, ancestral: bool) -> Schedule:
    sigmas = [s.item() for s in grid.sigmas]
    lines = []
    for t, (now, to) in zip(grid.timesteps.tolist(), pairwise(sigmas), strict=True):
        up = to * math.sqrt(max(now**2 - to**2, 0)) / now if ancestral else 0.0
        down = math.sqrt(max(to**2 - up**2, 0))
        lines.append(
            Step(
                t,
                *_x0(grid, _alpha(now) ** 2),
                a=down / now * _alpha(to) / _alpha(now),
                b=(1 - down / now) * _alpha(to),
                d=up * _alpha(to),
            )
        )
    start = float(grid.init_noise_sigma) * _alpha(sigmas[0])
    return Schedule(tuple(lines), start=start, end=1 / _alpha(sigmas[-1]))


def _euler_flow(config: Config, steps: int) -> Schedule:
    refuse("euler", config, "use_dynamic_shifting", "stochastic_sampling", "invert_sigmas")
    grid = FlowMatchEulerDiscreteScheduler.from_config(config)
    grid.set_timesteps(steps)
    lines = [
        Step(t, p=1.0, q=-now, a=to / now, b=1 - to / now)
        for t, (now, to) in zip(
            grid.timesteps.tolist(), pairwise(grid.sigmas.tolist()), strict=True
        )
    ]
    return Schedule(tuple(lines))


def _karras(name: str, config: Config) -> Config:
    if is_flow(config):
        raise ReleaseError(f"{name}: flow prediction is not supported")
    others = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    return {**config, "use_karras_sigmas": True, **dict.fromkeys(others, False)}


def _x0(grid: Any, alpha_cumprod: float) -> tuple[float, float]:
    """``p, q``: the clean latent from ``x`` and ``m`` at ᾱ."""
    alpha, sigma = math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod)
    if grid.config.prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    return alpha, -sigma


def _alpha(sigma: float) -> float:
    """Signal scale in variance-preserving coordinates of noise-to-signal ratio ``sigma``."""
    return 1 / math.sqrt(1 + sigma * sigma)


def _log_snr(alpha: float, sigma: float) -> float:
    """λ of DPM-Solver; infinite at either end."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
