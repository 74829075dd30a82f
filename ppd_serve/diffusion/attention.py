"""Plain attention, with kernels chosen by name through diffusers' dispatcher.

diffusers 0.42's ``set_attention_backend`` reaches only processors that hold an
``_attention_backend``; those it gives a ``UNet2DConditionModel`` do not, and would go on with
torch's own choice without a word. This one does, and the user's processor is built on it.

Shapes: B rows, H heads, Q queries, K keys, d the width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor

from ppd_serve.errors import ReleaseError


class PlainAttnProcessor:
    """diffusers' ``AttnProcessor2_0`` for attentions that are plain, and a place to add to it."""

    def __init__(self, backend: AttentionBackendName | None = None) -> None:
        self._attention_backend = backend  # None: torch's choice. The name is diffusers'

    def beside(self, query_BHQd: Tensor) -> Tensor | None:
        """What is added to the attention's own output, ``[B, H, Q, d]``, or to its first rows'."""
        return None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        grid = hidden_states.shape  # Stable Cascade's blocks come as [B, C, h, w]
        if len(grid) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        B, Q, _ = hidden_states.shape
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        elif attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)
        if attention_mask is not None:
            length = encoder_hidden_states.shape[1]
            attention_mask = attn.prepare_attention_mask(attention_mask, length, B)
            attention_mask = attention_mask.view(B, attn.heads, -1, attention_mask.shape[-1])

        def heads(x: Tensor) -> Tensor:
            return x.view(B, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        key = heads(attn.to_k(encoder_hidden_states))
        value = heads(attn.to_v(encoder_hidden_states))
        out = self._attend(query, key, value, attention_mask)
        if (more := self.beside(query)) is not None:
            rows = len(more)
            out = out + more if rows == B else torch.cat([out[:rows] + more, out[rows:]])

        out = out.transpose(1, 2).reshape(B, Q, -1).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(grid) == 4:
            out = out.transpose(1, 2).reshape(grid)
        return out / attn.rescale_output_factor

    def _attend(
        self, query_BHQd: Tensor, key_BHKd: Tensor, value_BHKd: Tensor, mask: Tensor | None
    ) -> Tensor:
        backend = self._attention_backend
        if backend is None:
            return F.scaled_dot_product_attention(query_BHQd, key_BHKd, value_BHKd, attn_mask=mask)
        heads_last = [x.transpose(1, 2) for x in (query_BHQd, key_BHKd, value_BHKd)]
        return dispatch_attention_fn(*heads_last, attn_mask=mask, backend=backend).transpose(1, 2)


def is_plain(attn: Attention) -> bool:
    """Without norms of its own and without extras."""
    norms = attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k
    extras = attn.residual_connection, attn.added_kv_proj_dim
    return all(norm is None for norm in norms) and not any(extras)


def use_attention_backend(unet: UNet2DConditionModel, name: str) -> None:
    """All attentions of ``unet`` by this kernel, one of diffusers' names: "native", "xformers",
    "flash", "_native_flash", "sage", … Call it before an adapter is put on.

    ReleaseError if there is no such kernel, it cannot run here, or the UNet has attentions that
    cannot be steered.
    """
    attentions = [m for m in unet.modules() if isinstance(m, Attention)]
    if not all(map(is_plain, attentions)):
        raise ReleaseError("attention_backend: this UNet has attentions that it cannot reach")
    for attn in attentions:
        attn.set_processor(PlainAttnProcessor())
    try:
        unet.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ReleaseError(f"attention_backend: {error}") from None
