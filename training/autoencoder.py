"""Trains the studio's autoencoder: diffusers' ``AutoencoderTiny``, 128 px to 16x16 latents.

It grows: first the decoder stops at 64 px, then the encoder is frozen and the last doubling learns
with the rest of the decoder. The denoiser depends on the encoder alone, so it can train while the
decoder grows. Measured on two cores: four halvings (8x8 latents) stood at 16 dB after 700 steps,
grown at 24 dB after 1,900 with small subjects lost; a decoder that doubles by repetition finds
detail inside a cell hard, so cells are 8 px here and the UNet's first level does the last halving.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from numpy.typing import NDArray
from torch import Tensor, nn

from training.stage import Draws, Metrics, Stage

LATENT_NOISE = 0.05
_HALF_SIZE_LAYERS = 11  # of the decoder: up to and with its block at half the final size


def new_autoencoder(channels: int = 48, latent_channels: int = 8) -> AutoencoderTiny:
    """Three halvings; depth sits where it is cheap, at 32 px and below."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 4,
        decoder_block_out_channels=(channels,) * 4,
        num_encoder_blocks=(0, 0, 2, 2),
        num_decoder_blocks=(2, 2, 1, 1),
        latent_channels=latent_channels,
    )
    _keep_variance(vae)
    return vae


def _keep_variance(vae: AutoencoderTiny) -> None:
    """PyTorch's default shrinks a signal threefold per linear conv; ten of them leave nothing."""
    convs = [m for m in vae.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            inner = [m for m in block.conv if isinstance(m, nn.Conv2d)]
            for conv in inner[:-1]:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            inner[-1].weight.data.mul_(0.1)
    convs[-1].weight.data.mul_(0.3)


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[B, H, W, 3]`` -> float ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) / 127.5 - 1


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L2 + L1 + L1 of gradients; the last keeps ink lines, hatching and confetti sharp."""
    error = (decoded - target) / 2
    slope_x = (error[..., 1:] - error[..., :-1]).abs().mean()
    slope_y = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return 10 * error.square().mean() + error.abs().mean() + slope_x + slope_y


def psnr(decoded: Tensor, target: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of ``[B, 3, H, W]`` in [-1, 1]."""
    error = ((decoded.clamp(-1, 1) - target) / 2).square().mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def _decode_half(vae: AutoencoderTiny, head: nn.Module, latents: Tensor) -> Tensor:
    """The decoder stopped at half size: ``[B, C, 16, 16]`` -> ``[B, 3, 64, 64]`` in [-1, 1]."""
    features = vae.decoder.layers[:_HALF_SIZE_LAYERS](torch.tanh(latents / 3) * 3)
    return head(features) * 2 - 1


def core_stage(
    vae: AutoencoderTiny,
    images: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    directory: Path,
    *,
    steps: int,
    batch: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> Stage:
    """Encoder and decoder together, judged at half size."""
    vae.to(device, memory_format=torch.channels_last).requires_grad_(True)  # 1.5x on a CPU
    vae.decoder.layers[_HALF_SIZE_LAYERS:].requires_grad_(False)
    width = vae.decoder.layers[-1].in_channels
    head = nn.Conv2d(width, 3, 3, padding=1).to(device)

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        target = to_input(images[draw.numpy.integers(len(images), size=batch)]).to(device)
        latents = vae.encode(target.to(memory_format=torch.channels_last)).latents
        noise = torch.randn(latents.shape, generator=draw.torch).to(device) * LATENT_NOISE
        decoded = _decode_half(vae, head, latents + noise)
        value = reconstruction_loss(decoded, F.avg_pool2d(target, 2))
        yield value + 1e-4 * latents.square().mean(), {}

    @torch.no_grad()
    def peek(_: int) -> Metrics:
        target = to_input(held_out).to(device)
        latents = vae.encode(target).latents
        decoded = _decode_half(vae, head, latents)
        return {
            "psnr": psnr(decoded, F.avg_pool2d(target, 2)),
            "latent_std": float(latents.std()),
        }

    return Stage(
        name="autoencoder", directory=directory, modules={"vae": vae, "head": head}, loss=loss,
        steps=steps, learning_rate=learning_rate, weight_decay=1e-4, ema_decay=0.995, hold=0.4,
        seed=seed, peek=peek, peek_every=200,
    )  # fmt: skip


def decoder_stage(
    vae: AutoencoderTiny,
    images: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    directory: Path,
    *,
    steps: int,
    batch: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> Stage:
    """The whole decoder at full size, from a frozen encoder's latents."""
    vae.to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    side = images.shape[1]

    def loss(step: int, draw: Draws) -> Iterator[tuple[Tensor, Metrics]]:
        target = to_input(images[draw.numpy.integers(len(images), size=batch)]).to(device)
        with torch.no_grad():
            latents = vae.encode(target.to(memory_format=torch.channels_last)).latents
            # The last half of the steps sees what the denoiser will hand over: slightly off.
            latents += torch.randn(latents.shape, generator=draw.torch).to(device) * LATENT_NOISE
        # Half-size windows with a cell of context: full resolution is what costs.
        cells = latents.shape[-1] // 2
        y, x = (int(v) for v in draw.numpy.integers(0, cells + 1, size=2))
        window = latents[..., y : y + cells, x : x + cells]
        decoded = vae.decode(window.contiguous(memory_format=torch.channels_last)).sample
        px = side // (2 * cells)
        seen = target[..., px * y : px * y + side // 2, px * x : px * x + side // 2]
        rows, columns = (_unspoiled(v, cells, px) for v in (y, x))
        yield reconstruction_loss(decoded[..., rows, columns], seen[..., rows, columns]), {}

    @torch.no_grad()
    def peek(_: int) -> Metrics:
        target = to_input(held_out).to(device)
        return {"psnr": psnr(vae.decode(vae.encode(target).latents).sample, target)}

    return Stage(
        name="decoder", directory=directory, modules={"decoder": vae.decoder}, loss=loss,
        steps=steps, learning_rate=learning_rate, weight_decay=1e-4, ema_decay=0.995, hold=0.3,
        seed=seed, peek=peek, peek_every=200,
    )  # fmt: skip


def _unspoiled(start: int, cells: int, px: int) -> slice:
    """Pixels of a window of ``cells`` that a cut edge does not spoil (one cell inwards)."""
    return slice(0 if start == 0 else px, cells * px - (0 if start == cells else px))
