"""The preference objectives, as pure functions over per-sample errors.

``err = mean over C, H, W of (prediction - target)²``, one number per image, shape ``[B]``.
``m`` is the policy's error, ``r`` the frozen reference's; ``_w`` the preferred image, ``_l`` the
rejected one. β absorbs the number of timesteps, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """``value`` is the scalar to minimise, the mean of every sample's ``terms`` ``[B]``; ``stats``
    are worth plotting (float scalars). ``right`` ``[B]``: whether the policy's implicit reward
    sides with the choice; None for an objective that has no reward."""

    value: Tensor
    terms: Tensor
    stats: dict[str, Tensor]
    right: Tensor | None = None


def _dpo_inside(m_w: Tensor, m_l: Tensor, r_w: Tensor, r_l: Tensor, beta: float) -> Tensor:
    return -0.5 * beta * ((m_w - m_l) - (r_w - r_l))


def sft_loss(m_w: Tensor) -> Loss:
    """Denoise the preferred images."""
    return Loss(m_w.mean(), m_w, {"error": m_w.detach().mean()})


def dpo_loss(
    m_w: Tensor,
    m_l: Tensor,
    r_w: Tensor,
    r_l: Tensor,
    *,
    beta: float,
    loser_scale: float | Tensor = 1.0,
    pair_weight: Tensor | None = None,
) -> Loss:
    """Diffusion-DPO (arXiv 2311.12908); conditioned on the user it is PPD (arXiv 2501.06655).

    ``loser_scale`` scales only the loser's gradient (Diffusion-SDPO, arXiv 2511.03317), not its
    value. ``pair_weight`` ``[B]`` is each pair's factor on β, SmPO's ``10·(2p - 1)`` (arXiv
    2506.02698; in the sigmoid, as in its authors' train.py).
    """
    m_l = loser_scale * m_l + (1 - loser_scale) * m_l.detach()
    inside = _dpo_inside(m_w, m_l, r_w, r_l, beta)
    if pair_weight is not None:
        inside = pair_weight * inside
    terms, right = -F.logsigmoid(inside), inside.detach() > 0
    return Loss(
        terms.mean(),
        terms,
        {
            "implicit_accuracy": right.to(inside.dtype).mean(),
            "margin": inside.detach().mean(),
            "winner": (m_w - r_w).detach().mean(),
            "loser": (m_l - r_l).detach().mean(),
        },
        right,
    )


def sdpo_scale(
    pred_w: Tensor, pred_l: Tensor, target_w: Tensor, target_l: Tensor, *, mu: float
) -> float:
    """How much of the loser's gradient cannot hurt the winner: ``λ ≤ (1-μ)·|g_w|²/(g_w·g_l)``.

    ``g`` are the errors' gradients with respect to the predictions; 1 where ``g_w·g_l ≤ 0``.
    """
    g_w, g_l = (pred_w - target_w).detach(), (pred_l - target_l).detach()
    dot = (g_w * g_l).sum()
    if dot <= 0:
        return 1.0
    return min(1.0, float((1 - mu) * g_w.square().sum() / dot))


Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]


def kto_loss(
    m: Tensor,
    r: Tensor,
    liked: Tensor,
    *,
    beta: float,
    utility: Utility = "kahneman_tversky",
    reference_point: Tensor | float | None = None,
    liked_weight: float = 1.0,
    disliked_weight: float = 1.0,
) -> Loss:
    """Diffusion-KTO (arXiv 2404.04465) over single images, ``liked`` boolean ``[B]``.

    ``reference_point`` None is the batch mean of ``r - m``, clamped at 0 and detached.
    """
    gain = r - m
    if reference_point is None:
        reference_point = gain.mean().clamp_min(0).detach()
    sign = torch.where(liked.bool(), 1.0, -1.0).to(gain.dtype)
    z = sign * beta * (gain - reference_point)
    if utility == "kahneman_tversky":
        h = torch.sigmoid(z)
    elif utility == "loss_averse":
        h = F.logsigmoid(z)
    elif utility == "risk_seeking":
        h = -sign * F.logsigmoid(-beta * (gain - reference_point))
    else:
        raise ValueError(f"utility: unknown value {utility!r}")
    weight = torch.where(liked.bool(), liked_weight, disliked_weight).to(gain.dtype)
    terms, right = weight * (1 - h), z.detach() > 0
    return Loss(
        terms.mean(),
        terms,
        {
            "reference_point": torch.as_tensor(reference_point, dtype=gain.dtype).detach(),
            "implicit_accuracy": right.to(gain.dtype).mean(),
            "gain": gain.detach().mean(),
        },
        right,
    )


def rpo_loss(
    m_w: Tensor,
    m_l: Tensor,
    r_w: Tensor,
    r_l: Tensor,
    distance: Tensor,
    *,
    beta: float,
    tau: float,
    weight: Literal["inside", "outside"] = "outside",
) -> Loss:
    """Diffusion-RPO (arXiv 2406.06382): every winner against every loser, near ones count more.

    ``distance`` ``[B, B]`` is ``1 - cosine`` of prompt+image of pair i and pair j. One timestep and
    one noise tensor for the whole batch, so that cross pairs compare.
    """
    closeness = torch.softmax(-distance / tau, dim=1)
    cross = (r_w - m_w)[:, None] + (m_l - r_l)[None, :]
    if weight == "inside":
        terms = -F.logsigmoid(beta * closeness * cross).mean(1)
    elif weight == "outside":
        terms = (closeness * -F.logsigmoid(beta * cross)).sum(1)
    else:
        raise ValueError(f"weight: unknown value {weight!r}")
    own = cross.diagonal().detach()
    right = own > 0
    stats = {"implicit_accuracy": right.to(own.dtype).mean(), "margin": own.mean()}
    return Loss(terms.mean(), terms, stats, right)
