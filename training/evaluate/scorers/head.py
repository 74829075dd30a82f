"""The five linear layers that LAION's aesthetic predictor and ImageReward end in.

No activation stands between them (it was commented out before the published weights were trained),
so they are one linear map; they are kept apart to hold the weights as published.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)
_PUBLISHED = (0, 2, 4, 6, 7)  # places among the layers where dropouts take up the others


class LinearHead(nn.Module):
    """``[B, width]`` -> ``[B]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, *WIDTHS)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


def head_weights(published: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A LinearHead's weights out of a published table, whose names begin with ``prefix``."""
    return {
        f"layers.{ours}.{kind}": published[f"{prefix}layers.{theirs}.{kind}"]
        for ours, theirs in enumerate(_PUBLISHED)
        for kind in ("weight", "bias")
    }
