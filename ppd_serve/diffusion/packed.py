"""A backbone's weights in the order in which a CPU computes on them; only to be drawn with, then.

Pictures are kept pixel by pixel (channels last), as oneDNN's convolutions and attention want them.
In bfloat16, on processors with AMX, convolutions' weights are laid out in oneDNN's blocks once:
torch's own puts them there anew at each call, a fifth of a step of the studio's UNet for one guided
picture (17 ms, not 21, on two threads of a Xeon). Nowhere else: in float32, and in bfloat16 without
AMX, the best layout depends on the size of each picture, and another took five to ten times as long
(131 ms, not 14, on two threads of an EPYC with AVX-512 BF16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ppd_serve.diffusion.backbone import Backbone

_HINT = 16, 16  # oneDNN asks for a size; with AMX every one gives the same layout


class PackedConv2d(nn.Module):
    """What ``conv`` computes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._how = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        # The pair of operations that torch's own compiler freezes convolutions with.
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            conv.weight.detach().to_mkldnn(), *self._how, [1, conv.in_channels, *_HINT]
        )
        self.bias = conv.bias  # diffusers ask parameters for a network's precision

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, self._weight, self.bias, *self._how, "none", [], ""
        )
        return out


def pack(backbone: Backbone) -> None:
    """All networks of a backbone on a CPU."""
    for stage in (backbone, *backbone.later):
        for network in vars(stage).values():
            if isinstance(network, nn.Module):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                pack_convolutions(network)


def pack_convolutions(network: nn.Module) -> None:
    """Those in bfloat16, where AMX has one layout for all sizes."""
    if torch.cpu._is_amx_tile_supported():
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Conv2d and _can_be_packed(child):
                    setattr(parent, name, PackedConv2d(child))


def _can_be_packed(conv: nn.Conv2d) -> bool:
    padded_with_zeros = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    return padded_with_zeros and conv.weight.dtype == torch.bfloat16
