"""The encoder whose features are Stable Cascade's Stage C latents. Needed for training only.

EfficientNetV2-S (arXiv 2104.00298, table 4) up to its last convolution, then 16 channels made
normal. Its published weights are ``effnet_encoder.safetensors`` of stabilityai/stable-cascade; the
keys are torchvision's ``efficientnet_v2_s`` under ``backbone.``, so its layers are named alike.
Written out here because torchvision's wheels fit one build of torch each, and nothing else of it is
needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ppd_serve.errors import ReleaseError

FILE = "effnet_encoder.safetensors"
SOURCE = f"{FILE} of stabilityai/stable-cascade"

LATENT, FEATURES = 16, 1280
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pixels in [0, 1]
# Widening, stride, channels in and out, blocks; the first three stages are fused.
STAGES = ((1, 1, 24, 24, 2), (4, 2, 24, 48, 4), (4, 2, 48, 64, 4),
          (4, 2, 64, 128, 6), (6, 1, 128, 160, 9), (6, 2, 160, 256, 15))  # fmt: skip
FUSED = 3
CELL = 32  # pixels along a side of what the encoder reads


class EfficientNetEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        stages = [_stage(*stage, fused=i < FUSED) for i, stage in enumerate(STAGES)]
        first, last = _conv(3, STAGES[0][2], 3, stride=2), _conv(STAGES[-1][3], FEATURES, 1)
        self.backbone = nn.Sequential(first, *stages, last)
        self.mapper = nn.Sequential(
            nn.Conv2d(FEATURES, LATENT, 1, bias=False), nn.BatchNorm2d(LATENT, affine=False)
        )

    @classmethod
    def load(cls, file: Path) -> Self:
        """The published weights. ReleaseError if they are not there or are something else."""
        with torch.device("meta"):
            encoder = cls()
        try:
            state = load_file(file)
            encoder.load_state_dict(state, assign=True)
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"training needs {SOURCE} in the backbone: {error}") from None
        except RuntimeError:
            raise ReleaseError(f"{file.name} is not {SOURCE}") from None
        return encoder.eval().requires_grad_(False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1], multiples of 32 pixels, to latents ``[B, 16, H/32, W/32]``."""
        mean, std = (pixels_B3HW.new_tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        return self.mapper(self.backbone((pixels_B3HW / 2 + 0.5 - mean) / std))


class _Squeeze(nn.Module):
    """Channels weighted by what the whole picture shows (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Block(nn.Module):
    """(Fused) MBConv: widen, look around, narrow; and what went in, where it fits."""

    def __init__(self, widen: int, stride: int, inputs: int, outputs: int, *, fused: bool) -> None:
        super().__init__()
        wide = inputs * widen
        if fused and widen == 1:
            layers: list[nn.Module] = [_conv(inputs, outputs, 3, stride=stride)]
        elif fused:
            layers = [_conv(inputs, wide, 3, stride=stride), _conv(wide, outputs, 1, active=False)]
        else:
            layers = [
                _conv(inputs, wide, 1),
                _conv(wide, wide, 3, stride=stride, groups=wide),
                _Squeeze(wide, inputs // 4),
                _conv(wide, outputs, 1, active=False),
            ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


def _stage(
    widen: int, stride: int, inputs: int, outputs: int, blocks: int, *, fused: bool
) -> nn.Sequential:
    first = _Block(widen, stride, inputs, outputs, fused=fused)
    rest = (_Block(widen, 1, outputs, outputs, fused=fused) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _conv(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
    ]
    return nn.Sequential(*layers, nn.SiLU()) if active else nn.Sequential(*layers)
