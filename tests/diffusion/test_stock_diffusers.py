"""Our release, in unmodified diffusers: the same latents as the engine's."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.engine import Engine
from ppd_serve.diffusion.request import User
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release
from tests.diffusion.test_isolation import embedding
from tests.tiny_release import EMBEDDING_ROWS

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler.from_config,
    "euler": EulerDiscreteScheduler.from_config,
    "dpmpp_2m": DPMSolverMultistepScheduler.from_config,
    "dpmpp_2m_karras": partial(DPMSolverMultistepScheduler.from_config, use_karras_sigmas=True),
    "lcm": LCMScheduler.from_config,
}


@pytest.fixture(scope="module")
def stock(release: Release) -> StableDiffusionPipeline:
    """Loaded by diffusers alone, from the paths that the release names."""
    pipeline = StableDiffusionPipeline.from_pretrained(release.backbone_path, safety_checker=None)
    assert release.adapter_path is not None
    pipeline.load_ip_adapter(
        release.adapter_path.parent.parent,
        subfolder=release.adapter_path.parent.name,
        weight_name=release.adapter_path.name,
        image_encoder_folder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize(("guidance", "scale"), [(4.0, 1.0), (1.0, 1.0), (2.5, 0.4)])
def test_reproduces_the_engine(
    release: Release,
    backbone: Backbone,
    adapter: UserAdapter,
    stock: StableDiffusionPipeline,
    sampler: str,
    guidance: float,
    scale: float,
) -> None:
    user = embedding(7)
    request = release.defaults.request(
        "a red house",
        negative_prompt="blue",
        users=(User(user),),
        preference_scale=scale,
        guidance_scale=guidance,
        sampler=sampler,
        steps=6,
        seed=11,
    )
    with Engine(backbone, adapter, embedding_rows=EMBEDDING_ROWS) as engine:
        ours = engine.submit(request).result(60)

    stock.scheduler = SCHEDULERS[sampler](backbone.scheduler_config)
    stock.set_ip_adapter_scale(scale)
    user_half = torch.from_numpy(user)[None]
    guided = guidance > 1
    embeds = torch.cat([torch.zeros_like(user_half), user_half]) if guided else user_half

    def draw(output_type: str) -> Any:
        return stock(
            "a red house",
            negative_prompt="blue",
            width=request.width,
            height=request.height,
            num_inference_steps=6,
            guidance_scale=guidance,
            guidance_rescale=request.guidance_rescale,
            ip_adapter_image_embeds=[embeds],
            generator=torch.Generator().manual_seed(11),
            output_type=output_type,
        ).images

    theirs = draw("latent")[0].numpy()
    assert np.abs(theirs).max() > 0.1
    assert np.abs(ours.latents - theirs).max() < 1e-3
    pixels = (draw("np")[0] * 255).round().astype(int)
    assert np.abs(pixels - ours.pixels.astype(int)).max() <= 1
