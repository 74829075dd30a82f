"""Policy and reference: one denoiser, with what is trained switched on or off.

Trained is an adapter (the user branch), a LoRA (PEFT), both, or all weights. Where switching it off
gives the base exactly (adapter, LoRA), the reference costs no second copy; with full weights it is
one. Without users the adapter reads one learned constant: equal parameters, equal steps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import ReleaseError

Weights = Literal["adapter", "lora", "full"]
Conditioning = Literal["none", "user"]
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Constant(nn.Module):
    """One embedding row for everybody, learned, ``[dim]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(dim))


class Policy:
    """What is trained of a backbone. ``modules`` are its parts by name, as checkpoints know them.

    ``weights`` lora or full with ``conditioning`` user trains the user branch beside them.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        weights: Weights,
        conditioning: Conditioning,
        embedding_shape: tuple[int, int],
        lora_rank: int = 8,
        seed: int = 0,
    ) -> None:
        self.backbone, self.weights, self.conditioning = backbone, weights, conditioning
        denoiser: Any = backbone.denoiser.requires_grad_(False)
        parameter = next(denoiser.parameters())
        # float32 at least beside any base: most steps would be lost on bf16 weights.
        trained_in = torch.promote_types(parameter.dtype, torch.float32)
        self.modules: dict[str, nn.Module] = {}
        self.adapter: UserAdapter | None = None
        self.constant: Constant | None = None
        self._frozen = copy.deepcopy(denoiser) if weights == "full" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if weights == "adapter" or conditioning == "user":
                self.adapter = UserAdapter.for_unet(denoiser, embedding_shape[1])
                self.adapter.to(parameter.device, trained_in)
                self.modules["adapter"] = self.adapter
            if weights == "adapter" and conditioning == "none":
                self.constant = Constant(embedding_shape[1]).to(parameter.device, trained_in)
                self.modules["constant"] = self.constant
            if weights == "lora":
                # PEFT's own: Stable Cascade's UNet has none of diffusers' ``add_adapter``.
                inject_adapter_in_model(LoraConfig(
                    r=lora_rank, lora_alpha=lora_rank, target_modules=LORA_TARGETS,
                    init_lora_weights="gaussian",
                ), denoiser)  # fmt: skip
        if weights == "lora":
            self.modules["lora"] = _only_trained(denoiser)
        if weights == "full":
            self.modules["denoiser"] = denoiser.requires_grad_(True)

    @contextmanager
    def policy(self, embedding_BRE: Tensor | None) -> Iterator[None]:
        """Forwards inside are the policy's; backward belongs inside too (it may run them again)."""
        if self.adapter is None:
            yield
            return
        if self.constant is not None:
            assert embedding_BRE is not None
            embedding_BRE = self.constant.value.expand(embedding_BRE.shape)
        users = None
        if embedding_BRE is not None:
            users = self.adapter.project(embedding_BRE)[:, None]
        with self.adapter.condition(users):
            yield

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Forwards inside are the frozen base's."""
        trained: Any = self.backbone.denoiser
        if self._frozen is not None:
            self.backbone.denoiser = self._frozen
            try:
                yield
            finally:
                self.backbone.denoiser = trained
            return
        self._switch_lora(False)
        try:
            if self.adapter is None:
                yield
            else:
                with self.adapter.condition(None):
                    yield
        finally:
            self._switch_lora(True)

    def _switch_lora(self, on: bool) -> None:
        for layer in self.backbone.denoiser.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(on)

    def save_adapter(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """The user branch as an IP-Adapter file. A constant is folded in: there, it is all ones."""
        assert self.adapter is not None
        adapter = copy.deepcopy(self.adapter)
        if self.constant is not None:
            with torch.no_grad():
                adapter.projection.proj.weight.mul_(self.constant.value)
        adapter.to(dtype).save(path)

    @torch.no_grad()
    def load_adapter(self, path: Path) -> None:
        """Go on from a saved user branch of the same shape."""
        assert self.adapter is not None
        saved = UserAdapter.load(path, copy.deepcopy(self.backbone.denoiser))
        if saved.has_biases:
            raise ReleaseError("the adapter has biases: dropping a user would not give the base")
        self.adapter.load_state_dict(saved.state_dict())
        if self.constant is not None:
            self.constant.value.fill_(1.0)

    def save(self, directory: Path) -> None:
        """What was trained, as others read it: an IP-Adapter file, a diffusers LoRA, a denoiser."""
        directory.mkdir(parents=True, exist_ok=True)
        denoiser: Any = self.backbone.denoiser
        if self.adapter is not None:
            self.save_adapter(directory / "ip_adapter.safetensors")
        if self.weights == "lora":
            trained = get_peft_model_state_dict(denoiser)
            save_file(
                {f"unet.{name}": value.contiguous() for name, value in trained.items()},
                directory / "pytorch_lora_weights.safetensors",
                metadata={"format": "pt"},
            )
        if self.weights == "full":
            denoiser.save_pretrained(directory / "denoiser")


def _only_trained(denoiser: nn.Module) -> nn.Module:
    """The LoRA's own parameters as a module, so that checkpoints leave the base out."""
    kept = nn.ParameterDict()
    for name, parameter in denoiser.named_parameters():
        if "lora_" in name:
            kept[name.replace(".", "/")] = parameter.requires_grad_(True)
    return kept
