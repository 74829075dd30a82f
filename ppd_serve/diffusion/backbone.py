"""What the engine needs of a diffusion model, and how one is loaded.

Everything that differs between models (Stable Diffusion, SDXL, Stable Cascade, …) sits behind
``Backbone``: one file per family, chosen by the pipeline class that the directory itself names.

What a diffusion transformer (SD 3.5, FLUX) would need beyond its own file:

- A user attention for joint blocks: text and picture share one attention there, so the user's
  tokens are read by the picture's queries alone, and the result added to its half of the output.
  ``UserAdapter`` finds UNet attentions today; stock diffusers' IP-Adapter files for these models
  have other keys.
- The latents' packing (FLUX: 2×2 cells to a token, with position ids) inside ``denoise``, so that
  rows stay ``[C, h, w]``; and the autoencoder's ``shift_factor``.
- FLUX's guidance as an input in place of a second forward: one more tensor of ``Text``.
- ``schedules.py`` has the flow tables; FLUX's shift depends on the size (``use_dynamic_shifting``,
  refused today), so ``Backbone.schedule`` would be told the latent's shape.
- A T5 encoder beside CLIP, whose states are far longer: ``TEXTS_KEPT`` counts prompts, not bytes.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from ppd_serve.diffusion.attention import use_attention_backend
from ppd_serve.diffusion.packed import pack
from ppd_serve.diffusion.request import GenerationRequest
from ppd_serve.diffusion.schedules import Schedule
from ppd_serve.errors import ReleaseError

Text = Mapping[str, Tensor]
"""What the denoiser is told of a prompt: dimension 0 is the batch, equal shapes for all prompts."""

FAMILIES = {
    "StableDiffusionPipeline": "ppd_serve.diffusion.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "ppd_serve.diffusion.sdxl:StableDiffusionXL",
    "StableCascadeCombinedPipeline": "ppd_serve.diffusion.stable_cascade:StableCascade",
}
"""The pipeline class that a directory names, and the class here that serves it: imported when one
is loaded. Each has ``load(path, device, dtype)`` and ``compile()``."""

LEFT_OUT = {
    "StableDiffusionPipeline": {"safety_checker"},
    "StableCascadeCombinedPipeline": {
        "text_encoder", "tokenizer", "prior_image_encoder", "prior_feature_extractor",
    },
}  # fmt: skip
"""Of a pipeline's parts, those that nobody here loads."""

DENOISERS = ("unet", "prior_prior")
"""What pipelines call the first stage's denoiser."""

PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})


class Stage(Protocol):
    """One denoising, from noise to a latent."""

    device: torch.device
    denoiser: nn.Module

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """``(C, h, w)`` of this picture size in pixels. InvalidInput if the model cannot do it."""

    def schedule(self, sampler: str, steps: int) -> Schedule:
        """The table of one of ``samplers``. InvalidInput for another name or step count."""

    def bucket(self, parts: int) -> int:
        """How many parts a forward for so many is given: more where only some sizes are compiled.
        Those beyond are copies that nobody looks at."""

    def denoise(self, x_BCHW: Tensor, timesteps_B: Tensor, text: Text) -> Tensor:
        """The model's output at each row's own timestep, ``[B, C, h, w]``."""


class LaterStage(Stage, Protocol):
    """It goes on from the latent of the stage before, and users have no say in it."""

    def asked(self, request: GenerationRequest) -> GenerationRequest:
        """What this stage is to do for a request: its own sampler, steps and guidance, nobody's
        taste."""

    def told(self, text: Text, latent_BCHW: Tensor) -> Text:
        """What its denoiser is told: a prompt as ``encode`` gives it, and the latent before (zero
        for what the picture is guided away from)."""


class Backbone(Stage, Protocol):
    """One denoiser with its text encoder and autoencoder, and what follows it. It is the first
    stage itself, the one that users and training have to do with. ``encode`` may be called by any
    thread; on a CPU so may ``denoise`` and ``decode``; the rest by one thread at a time."""

    dtype: torch.dtype
    samplers: tuple[str, ...]
    scheduler_config: dict[str, Any]  # how it was trained: betas and prediction type
    later: tuple[LaterStage, ...]  # what a picture goes through next, in this order

    def encode(self, prompt: str | None) -> Text:
        """One prompt, each tensor with a leading dimension of 1; long ones are cut. None is no
        prompt at all, which guidance leads away from if no negative prompt is given: what the model
        was trained with then, not always an empty prompt."""

    def texts_found(self) -> tuple[int, int]:
        """How often ``encode`` had a prompt's states at hand, and how often it made them."""

    def to_latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to latents ``[B, C, h, w]``: what training starts from."""

    def preview(self, x0_BCHW: Tensor) -> np.ndarray:
        """Roughly what estimates of the last stage's clean latents show, cheaply: small uint8
        ``[B, h, w, 3]``."""

    def decode(self, latents_BCHW: Tensor) -> np.ndarray:
        """Final latents of the last stage to pixels, uint8 ``[B, H, W, 3]``."""


def last_asked(request: GenerationRequest, backbone: Backbone) -> GenerationRequest:
    """What the last stage is to do for a request: that of the steps which have previews."""
    return backbone.later[-1].asked(request) if backbone.later else request


def load_backbone(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    compile: bool = False,
    attention_backend: str | None = None,
    packed: bool = False,
) -> Backbone:
    """Load a directory that a diffusers pipeline saved. ReleaseError if it cannot be served.

    ``compile`` is for GPUs and of no effect elsewhere; ``attention_backend`` is a name of
    diffusers' dispatcher, None torch's own choice. ``packed`` is for CPUs, of no effect elsewhere:
    faster, and only to be drawn with.
    """
    refuse_pickles(path)
    family = _index(path)["_class_name"]
    if family not in FAMILIES:
        raise ReleaseError(f"{family} is not a backbone this server knows")
    backbone = pkgutil.resolve_name(FAMILIES[family]).load(path, device, dtype)
    if attention_backend is not None:
        for stage in (backbone, *backbone.later):
            use_attention_backend(stage.denoiser, attention_backend)
    if compile and backbone.device.type == "cuda":
        backbone.compile()
    if packed and backbone.device.type == "cpu":
        pack(backbone)
    loaded: Backbone = backbone
    return loaded


def empty_denoiser(path: Path) -> nn.Module:
    """The first stage's denoiser of a directory without its weights, on the meta device: what
    adapters fit is told by its shapes. ReleaseError if the directory names none."""
    index = _index(path)
    for part in DENOISERS:
        if part in index:
            kind = getattr(diffusers, index[part][1])
            with torch.device("meta"):
                denoiser: nn.Module = kind.from_config(kind.load_config(path / part))
            return denoiser
    raise ReleaseError(f"{path.name} holds no denoiser that this server knows")


def loaded_parts(path: Path) -> dict[str, tuple[str, str]]:
    """Of a pipeline's parts those that are loaded: their names, and the library and class of each.
    ReleaseError if the directory holds no pipeline."""
    index = _index(path)
    left_out = LEFT_OUT.get(index["_class_name"], set())
    named = {name: kind for name, kind in index.items() if isinstance(kind, list) and all(kind)}
    return {name: (kind[0], kind[1]) for name, kind in named.items() if name not in left_out}


def _index(path: Path) -> dict[str, Any]:
    """What a pipeline says of itself."""
    try:
        index: dict[str, Any] = json.loads((path / "model_index.json").read_text())
        index["_class_name"]
    except (OSError, ValueError, KeyError):
        raise ReleaseError(f"{path.name} holds no diffusers pipeline (model_index.json)") from None
    return index


def refuse_pickles(path: Path) -> None:
    """ReleaseError if a file under ``path`` could run code when loaded."""
    for file in sorted(path.rglob("*")):
        if file.suffix in PICKLES:
            raise ReleaseError(f"{file.relative_to(path)} is a pickle; only safetensors are served")
