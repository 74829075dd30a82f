"""Stable Cascade in miniature: 128 px, Stage C at 3×3, Stage B at 32×32."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeCombinedPipeline, StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from torch import nn
from transformers import CLIPTextModelWithProjection

from ppd_serve.diffusion.stable_cascade import StableCascade
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.release import Release
from tests.tiny_encoder import make_tiny_encoder
from tests.tiny_release import byte_tokenizer
from tests.twins.writing import MakeEncoder, clip_config, write_twin

STATES, POOLED = 24, 20  # widths: text states, pooled text
RESIDUAL, TIMESTEP, ATTENTION = "SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"


def make_stable_cascade(
    path: Path, *, make_encoder: MakeEncoder | None = make_tiny_encoder, seed: int = 0
) -> Release:
    pipeline = stable_cascade_pipeline(seed)
    return write_twin(
        path,
        "stable-cascade-twin",
        pipeline,
        partial(UserAdapter.for_unet, pipeline.prior_prior),
        replace(StableCascade.usual, sizes=((128, 128), (128, 256)), steps=4),
        make_encoder=make_encoder,
        seed=seed,
    )


def stable_cascade_pipeline(seed: int = 0) -> StableCascadeCombinedPipeline:
    """The checkpoint's classes: both UNets with the kinds of blocks and conditions of theirs, and
    nothing left at zero, where a new model starts and hides effects."""
    tokenizer = byte_tokenizer(max_length=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModelWithProjection(
            clip_config(tokenizer, STATES, projection_dim=POOLED)
        )
        stage_c = StableCascadeUNet(
            timestep_ratio_embedding_dim=8,
            conditioning_dim=24,
            block_out_channels=(32, 32),
            num_attention_heads=(4, 4),
            down_num_layers_per_block=(1, 2),
            up_num_layers_per_block=(2, 1),
            clip_text_in_channels=STATES,
            clip_text_pooled_in_channels=POOLED,
            clip_image_in_channels=12,
            clip_seq=4,
            dropout=(0.1, 0.1),
            switch_level=(False,),
        )
        stage_b = StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=8,
            patch_size=2,
            conditioning_dim=24,
            block_out_channels=(16, 32),
            num_attention_heads=(-1, 4),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            down_blocks_repeat_mappers=(1, 1),
            up_blocks_repeat_mappers=(2, 2),
            block_types_per_layer=((RESIDUAL, TIMESTEP), (RESIDUAL, TIMESTEP, ATTENTION)),
            clip_text_pooled_in_channels=POOLED,
            clip_seq=4,
            effnet_in_channels=16,
            pixel_mapper_in_channels=3,
            dropout=(0.0, 0.1),
            timestep_conditioning_type=("sca",),
        )
        # Untrained, the stages end a hundred times as far out as trained ones.
        vqgan = PaellaVQModel(
            bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8, scale_factor=0.004
        )
        for module in (stage_c, stage_b, vqgan):
            for name, parameter in module.named_parameters():
                if name.endswith(("gamma", "beta", "gammas")):
                    nn.init.normal_(parameter, std=0.3)
                if module is stage_c and name.endswith("to_out.0.weight"):
                    nn.init.normal_(parameter, std=1.0)  # or Stage B hardly hears of a user
    scheduler = DDPMWuerstchenScheduler()
    return StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        decoder=stage_b.eval(),
        scheduler=scheduler,
        vqgan=vqgan.eval(),
        prior_prior=stage_c.eval(),
        prior_text_encoder=text_encoder,
        prior_tokenizer=tokenizer,
        prior_scheduler=DDPMWuerstchenScheduler(),
    )
