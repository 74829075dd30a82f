"""Stable Cascade is published in two halves; a release has one directory of both.

::

    python -m ppd_serve.diffusion.cascade_halves backbone

fetches what is served of stabilityai/stable-cascade-prior and stabilityai/stable-cascade, and
writes it as ``StableCascadeCombinedPipeline`` saves itself, with one text encoder in place of two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeCombinedPipeline, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from transformers import AutoTokenizer, CLIPTextModelWithProjection

PRIOR, DECODER = "stabilityai/stable-cascade-prior", "stabilityai/stable-cascade"


def join(
    out: Path,
    prior: str | Path = PRIOR,
    decoder: str | Path = DECODER,
    *,
    dtype: torch.dtype = torch.bfloat16,
    variant: str | None = "bf16",
) -> None:
    """Write both to ``out``. ``prior`` and ``decoder`` are repositories of the hub, or directories
    that diffusers' prior and decoder pipelines saved."""

    def part(kind: Any, half: str | Path, name: str) -> Any:
        return kind.from_pretrained(
            half, subfolder=name, dtype=dtype, variant=variant, use_safetensors=True
        )

    StableCascadeCombinedPipeline(
        prior_prior=part(StableCascadeUNet, prior, "prior"),
        prior_text_encoder=part(CLIPTextModelWithProjection, prior, "text_encoder"),
        prior_tokenizer=AutoTokenizer.from_pretrained(prior, subfolder="tokenizer"),
        prior_scheduler=DDPMWuerstchenScheduler.from_pretrained(prior, subfolder="scheduler"),
        decoder=part(StableCascadeUNet, decoder, "decoder"),
        vqgan=part(PaellaVQModel, decoder, "vqgan"),
        scheduler=DDPMWuerstchenScheduler.from_pretrained(decoder, subfolder="scheduler"),
        text_encoder=None,
        tokenizer=None,
    ).save_pretrained(out)


if __name__ == "__main__":
    join(Path(sys.argv[1]))
