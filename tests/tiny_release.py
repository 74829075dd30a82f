"""A whole release, small and untrained, in the very formats of a trained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ppd_serve.diffusion.request import Defaults
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.preferences.choice_model import ChoiceModel
from ppd_serve.preferences.encoder import embedding_space
from ppd_serve.preferences.picture_states import PARTS
from ppd_serve.preferences.questions import Questioner
from ppd_serve.release import Manifest, Release, Source, write_release
from tests import tiny_encoder

EMBEDDING_ROWS, EMBEDDING_DIM = tiny_encoder.ROWS, tiny_encoder.DIM


def make_tiny_release(path: str | Path, seed: int = 0) -> Release:
    """Write a random release to ``path``: 64 px (4×4 latents at f16), and 32×64.

    Its adapter is not zero and its encoder tells pairs apart: users' pictures differ visibly.
    The same seed writes the same weights.
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = tiny_pipeline()
        adapter = UserAdapter.for_unet(pipeline.unet, EMBEDDING_DIM)
        for branch in adapter.branches:
            torch.nn.init.normal_(branch.to_v_ip.weight, std=0.5)
    adapter.save(path / "adapter" / "ip_adapter.safetensors")
    pipeline.save_pretrained(path / "backbone", safe_serialization=True)
    encoder = tiny_encoder.make_tiny_encoder(path / "encoder", seed)
    tiny_questioner(seed).save(path / "questions.safetensors")
    return write_release(
        path,
        Manifest(
            name="tiny",
            version="1.0",
            backbone=Source(path="backbone"),
            adapter=Source(path="adapter/ip_adapter.safetensors"),
            encoder=Source(path="encoder"),
            questions=Source(path="questions.safetensors"),
            embedding_space=embedding_space(encoder, dtype="float32", quantisation=None),
            embedding_shape=(EMBEDDING_ROWS, EMBEDDING_DIM),
            defaults=Defaults(
                sizes=((64, 64), (32, 64)),
                steps=4,
                guidance_scale=3.0,
                guidance_rescale=0.5,
                sampler="ddim",
                preference_scale=1.0,
            ),
            example_prompts=["a red house by the sea", "a cat on a hill at night"],
        ),
    )


def tiny_questioner(seed: int = 0) -> Questioner:
    """Random, over what the tiny encoder sees of a picture."""
    rng, d = np.random.default_rng(seed), 4
    model = ChoiceModel(
        rng.standard_normal((PARTS * tiny_encoder.WIDTH, d)) / 50, np.zeros(d), np.eye(d)
    )
    return Questioner(model, rng.standard_normal((EMBEDDING_ROWS, EMBEDDING_DIM, d)) / 20)


def tiny_pipeline() -> StableDiffusionPipeline:
    """The classes of the default release's backbone, random weights from torch's generator."""
    tokenizer = byte_tokenizer(max_length=16)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 5,
        decoder_block_out_channels=(8,) * 5,
        num_encoder_blocks=(1,) * 5,
        num_decoder_blocks=(1,) * 5,
        latent_channels=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # diffusers would set it, with a warning
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """Byte-level, without merges: every text has tokens, and none is ever unknown."""
    words = ["<|start|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_max_length=max_length,
    )
