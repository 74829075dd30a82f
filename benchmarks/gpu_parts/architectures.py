"""The published checkpoints' shapes, copied from the config files they come with on the hub.

Only what differs from diffusers' and transformers' own defaults. ``TOY`` has the same blocks in
miniature: what a CPU runs through in seconds.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

# stable-diffusion-v1-5/stable-diffusion-v1-5
SD15_SCHEDULER: Config = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
SD15_UNET: Config = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SD15_VAE: Config = {
    "sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
CLIP_L: Config = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}  # fmt: skip

# stabilityai/stable-diffusion-xl-base-1.0; its text_encoder is CLIP_L
SDXL_SCHEDULER: Config = {
    **SD15_SCHEDULER, "timestep_spacing": "leading", "prediction_type": "epsilon",
    "interpolation_type": "linear", "use_karras_sigmas": False,
}  # fmt: skip
SDXL_UNET: Config = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SDXL_VAE: Config = {**SD15_VAE, "sample_size": 1024, "scaling_factor": 0.13025}
CLIP_BIG_G: Config = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280,
    "num_hidden_layers": 32, "num_attention_heads": 20, "max_position_embeddings": 77,
    "hidden_act": "gelu",
}  # fmt: skip

# stabilityai/stable-cascade-prior (Stage C) and stabilityai/stable-cascade (Stage B); both have
# CLIP_BIG_G as their text encoder
CASCADE_STAGE_C: Config = {
    "in_channels": 16, "out_channels": 16, "conditioning_dim": 2048, "patch_size": 1,
    "block_out_channels": (2048, 2048), "num_attention_heads": (32, 32),
    "down_num_layers_per_block": (8, 24), "up_num_layers_per_block": (24, 8),
    "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1),
    "block_types_per_layer": (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    ) * 2,
    "clip_text_in_channels": 1280, "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": 768, "clip_seq": 4, "dropout": (0.1, 0.1), "self_attn": True,
    "switch_level": (False,), "timestep_conditioning_type": ("sca", "crp"),
}  # fmt: skip
CASCADE_STAGE_B: Config = {
    "in_channels": 4, "out_channels": 4, "conditioning_dim": 1280, "patch_size": 2,
    "block_out_channels": (320, 640, 1280, 1280), "num_attention_heads": (0, 0, 20, 20),
    "down_num_layers_per_block": (2, 6, 28, 6), "up_num_layers_per_block": (6, 28, 6, 2),
    "down_blocks_repeat_mappers": (1, 1, 1, 1), "up_blocks_repeat_mappers": (3, 3, 2, 2),
    "block_types_per_layer": (
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
    ),
    "clip_text_pooled_in_channels": 1280, "clip_seq": 4, "effnet_in_channels": 16,
    "pixel_mapper_in_channels": 3, "dropout": (0, 0, 0.1, 0.1), "self_attn": True,
    "timestep_conditioning_type": ("sca",),
}  # fmt: skip

# h94/IP-Adapter, models/image_encoder
CLIP_VIT_H: Config = {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024, "patch_size": 14,
    "num_hidden_layers": 32, "num_attention_heads": 16, "image_size": 224,
}  # fmt: skip

# Qwen/Qwen2.5-VL-7B-Instruct
QWEN_7B: Config = {
    "text_config": {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}  # fmt: skip

TOY_UNET: Config = {"sample_size": 8, "norm_num_groups": 8, "layers_per_block": 1}
TOY_SD15_UNET: Config = {
    **SD15_UNET, **TOY_UNET, "block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 24,
    "attention_head_dim": 4,
}  # fmt: skip
TOY_SDXL_UNET: Config = {
    **SDXL_UNET, **TOY_UNET, "block_out_channels": (16, 32, 32), "cross_attention_dim": 48,
    "attention_head_dim": (2, 4, 4), "transformer_layers_per_block": (1, 1, 2),
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 24,
}  # fmt: skip
TOY_VAE: Config = {
    "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "sample_size": 64,
    "layers_per_block": 1,
}  # fmt: skip
TOY_CLIP: Config = {
    "vocab_size": 300, "hidden_size": 24, "intermediate_size": 48, "projection_dim": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
TOY_STAGE_C: Config = {
    **CASCADE_STAGE_C, "conditioning_dim": 24, "block_out_channels": (32, 32),
    "num_attention_heads": (4, 4), "down_num_layers_per_block": (1, 2),
    "up_num_layers_per_block": (2, 1), "clip_text_in_channels": 24,
    "clip_text_pooled_in_channels": 24, "clip_image_in_channels": 12,
    "timestep_ratio_embedding_dim": 8,
}  # fmt: skip
TOY_STAGE_B: Config = {
    **CASCADE_STAGE_B, "conditioning_dim": 24, "block_out_channels": (16, 32),
    "num_attention_heads": (0, 4), "down_num_layers_per_block": (1, 1),
    "up_num_layers_per_block": (1, 1), "down_blocks_repeat_mappers": (1, 1),
    "up_blocks_repeat_mappers": (2, 2), "dropout": (0, 0.1),
    "block_types_per_layer": CASCADE_STAGE_B["block_types_per_layer"][1:3],
    "clip_text_pooled_in_channels": 24, "timestep_ratio_embedding_dim": 8,
}  # fmt: skip
TOY_VQGAN: Config = {"bottleneck_blocks": 1, "embed_dim": 16, "num_vq_embeddings": 8}
TOY_QWEN: Config = {
    "text_config": {
        **QWEN_7B["text_config"], "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6],
        },
    },
    "vision_config": {
        **QWEN_7B["vision_config"], "depth": 2, "hidden_size": 64, "intermediate_size": 96,
        "num_heads": 2, "out_hidden_size": 64, "fullatt_block_indexes": [1],
    },
    "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302,
    "vision_end_token_id": 303,
}  # fmt: skip
