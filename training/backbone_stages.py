"""The stages that make the default's backbone: autoencoder, base, decoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel

from ppd_serve.diffusion.backbone import Backbone, load_backbone
from training import autoencoder, base
from training.workbench import Workbench, load


class BackboneStages(Workbench):
    """In the order they run."""

    def vae_core(self) -> AutoencoderTiny:
        def make(draft: Path) -> None:
            if self.start:
                shutil.copytree(self.start / "backbone" / "vae", draft)
                return
            vae = autoencoder.new_autoencoder()
            self.train(autoencoder.core_stage(
                vae, self.pool().images, self.pool("dev").images[:32], self.work,
                steps=self.budget.autoencoder_steps, batch=self.budget.autoencoder_batch,
                seed=self.seed, device=self.device,
            ))  # fmt: skip
            vae.half().save_pretrained(draft)

        return load(AutoencoderTiny, self.once("vae-core", make))

    def latents(self, name: str = "train") -> torch.Tensor:
        """Raw latents of a pool; times ``scaling_factor`` before use."""

        def make(draft: Path) -> None:
            vae = self.vae_core().to(self.device)
            torch.save(base.encode_pool(vae, self.pool(name).images), draft)

        return torch.load(self.once(f"latents-{name}.pt", make), weights_only=True)

    def scaling_factor(self) -> float:
        return float(1 / self.latents().std())

    def base(self) -> tuple[UNet2DConditionModel, CLIPTextModel]:
        def make(draft: Path) -> None:
            latents = self.latents() * self.scaling_factor()
            tokenizer = base.new_tokenizer()
            text, unet = base.new_text_encoder(tokenizer), base.new_unet()
            if self.start:
                text = load(CLIPTextModel, self.start / "backbone" / "text_encoder")
                unet = load(UNet2DConditionModel, self.start / "backbone" / "unet")
            self.train(base.base_stage(
                unet, text, tokenizer, latents, self.pool().captions, self.work,
                steps=self.budget.base_steps, batch=self.budget.base_batch, seed=self.seed,
                bf16=self.bf16, device=self.device,
            ))  # fmt: skip
            text.half().save_pretrained(self.work / "text")
            unet.half().save_pretrained(draft)

        unet = load(UNet2DConditionModel, self.once("unet", make))
        return unet, load(CLIPTextModel, self.work / "text")

    def vae(self) -> AutoencoderTiny:
        def make(draft: Path) -> None:
            vae = self.vae_core()
            self.train(autoencoder.decoder_stage(
                vae, self.pool().images, self.pool("dev").images[:32], self.work,
                steps=self.budget.decoder_steps, batch=self.budget.autoencoder_batch,
                seed=self.seed, device=self.device,
            ))  # fmt: skip
            vae.half().save_pretrained(draft)

        return load(AutoencoderTiny, self.once("vae", make))

    def backbone(self) -> Backbone:
        """The base as it ships but for the decoder, which no training of the adapter looks at."""

        def make(draft: Path) -> None:
            unet, text = self.base()
            vae = self.vae_core()
            vae.register_to_config(scaling_factor=self.scaling_factor())
            base.save_backbone(draft, vae, text, base.new_tokenizer(), unet)

        return load_backbone(self.once("backbone", make), self.device)
