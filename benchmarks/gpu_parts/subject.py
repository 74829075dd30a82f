"""What is measured: a model with its adapter in our engine, and stock diffusers beside it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_parts.models import Model, Size, build
from benchmarks.gpu_parts.noise import noise_as_ours
from benchmarks.stock import SCHEDULERS
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import Defaults, GenerationRequest, Result, User
from ppd_serve.diffusion.user_attention import UserAdapter

DIM = 64  # of an embedding, which has one row
PROMPT = "a small boat by the lake in the evening, an oil painting"


@dataclass
class Subject:
    """One model on one device. Its adapter is put on when first asked for, so stock comes first."""

    model: Model
    size: Size
    device: str
    pipeline: Any

    @classmethod
    def of(cls, model: Model, size: Size, device: str) -> Subject:
        return cls(model, size, device, build(model, size, device, torch.bfloat16))

    @property
    def defaults(self) -> Defaults:
        return self.model.defaults(self.size)

    def in_float32(self) -> Subject:
        """The same weights in a copy, which is what bfloat16 is measured against."""
        return Subject(
            self.model, self.size, self.device, copy.deepcopy(self.pipeline).to(torch.float32)
        )

    @cached_property
    def backbone(self) -> Backbone:
        return self.model.backbone(self.pipeline)

    @cached_property
    def adapter(self) -> UserAdapter:
        """As trained ones are: with values that are not zero."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            adapter = UserAdapter.for_unet(self.backbone.denoiser, DIM)
            for branch in adapter.branches:
                nn.init.normal_(branch.to_v_ip.weight, std=0.02)
        rounded = adapter.to(torch.bfloat16)  # the same numbers in float32, too
        return rounded.to(self.device, self.backbone.dtype).requires_grad_(False)

    def compile(self) -> None:
        """The denoiser's blocks; a CPU only goes through the motions."""
        backend = "inductor" if self.device.startswith("cuda") else "eager"
        self.backbone.compile(backend)  # type: ignore[attr-defined]

    @contextmanager
    def engine(self, rows: int) -> Iterator[Engine]:
        with Engine(self.backbone, self.adapter, embedding_rows=1, max_rows=rows) as engine:
            yield engine

    def request(self, seed: int = 0, **chosen: Any) -> GenerationRequest:
        return self.defaults.request(PROMPT, seed=seed, **chosen)

    def personal(self, count: int, **chosen: Any) -> list[GenerationRequest]:
        """Pictures of as many different users."""
        return [self.request(seed, users=(user(seed),), **chosen) for seed in range(count)]

    def stock(self, count: int = 1, *, steps: int | None = None, seed: int | None = None) -> Any:
        """Pictures by one call of the unmodified pipeline; with a seed the latents, of the noise
        that our rows draw."""
        width, height = self.defaults.sizes[0]
        asked: dict[str, Any] = {
            "prompt": PROMPT, "width": width, "height": height, "num_images_per_prompt": count,
            "num_inference_steps": steps or self.defaults.steps,
            "guidance_scale": self.defaults.guidance_scale,
        }  # fmt: skip
        if seed is not None:
            asked |= {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
        if later := self.backbone.later:  # Stable Cascade: what was asked is the prior's
            for name in ("num_inference_steps", "guidance_scale"):
                asked["prior_" + name] = asked.pop(name)
            asked["num_inference_steps"] = later[0].asked(self.request()).steps
        else:
            kind = SCHEDULERS[self.defaults.sampler]
            self.pipeline.scheduler = kind.from_config(self.pipeline.scheduler.config)
        with torch.inference_mode(), noise_as_ours():
            return self.pipeline(**asked).images

    def inputs(self, parts: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Of a forward of so many parts."""
        shape = self.backbone.latent_shape(*self.defaults.sizes[0])
        text = self.backbone.encode(PROMPT)
        return (
            torch.randn(parts, *shape, device=self.device),
            torch.full((parts,), 0.5, device=self.device),
            {key: x.expand(parts, *x.shape[1:]).contiguous() for key, x in text.items()},
        )


def user(seed: int) -> User:
    return User(np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32))


def drawn(engine: Engine, requests: Iterable[GenerationRequest]) -> list[Result]:
    return [ticket.result() for ticket in engine.submit_all(list(requests))]


def latents(results: Sequence[Result]) -> np.ndarray:
    return np.stack([result.latents for result in results])
