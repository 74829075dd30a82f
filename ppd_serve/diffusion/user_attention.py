"""The adapter: a preference embedding beside the prompt in a frozen denoiser's cross-attentions.

IP-Adapter's decoupled cross-attention (arXiv 2308.06721) with the preference embedding where the
image embedding stood, and a weight per row and per user::

    out = Attn(q, K_text, V_text) + Σ_i w_i · Attn(q, u_i·W'_k, u_i·W'_v)

``W'`` has no bias and ``W'_v`` starts at zero, so a new adapter, a zero embedding and a zero weight
all give the base model's output bit for bit (at equal batch composition).

Public IP-Adapters have biases in their projection: there, zero makes tokens like any other, and was
what their unguided half was trained with. So with them both halves of a guided row attend to
tokens, its own and zero's (``has_biases``), and who is zero is nobody (``rows.py``).

Nothing but the queries changes from step to step, so ``project`` goes all the way from an embedding
to the keys and values of every branch: the engine does it once for a request.

Shapes: B rows of the batch, U users of a row, R rows of an embedding, E its width, T user tokens
(``tokens_per_row · R``), D the cross-attention width, 2 keys and values, P the inner widths of all
branches one after the other, I that of one, Q query positions, H heads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppd_serve.diffusion.attention import PlainAttnProcessor, is_plain
from ppd_serve.errors import ReleaseError


class Condition:
    """Who one attention draws the first rows of a forward for: keys and values, these weighted;
    None for nobody.

    Every thread has its own: parts of a batch run side by side (``lanes.py``). A thread that was
    never told has what was told last: on a GPU, autograd's runs checkpointed forwards again.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._last: Tensor | None = None

    def __reduce__(self) -> tuple[type[Condition], tuple[()]]:
        """A copy was told nothing."""
        return Condition, ()

    @property
    def users_BUT2I(self) -> Tensor | None:
        return getattr(self._own, "users", self._last)

    def tell(self, users_BUT2I: Tensor | None) -> Tensor | None:
        """This thread, from now on. Returns who it was until now."""
        before = getattr(self._own, "users", None)
        self._own.users = self._last = users_BUT2I
        return before


class UserProjection(nn.Module):
    """diffusers' ``ImageProjection``. In training both biases are held at zero, so that zero stays
    zero."""

    def __init__(self, embedding_dim: int, token_dim: int, tokens_per_row: int) -> None:
        super().__init__()
        self.tokens_per_row = tokens_per_row
        self.proj = nn.Linear(embedding_dim, tokens_per_row * token_dim)
        self.norm = nn.LayerNorm(token_dim)
        nn.init.normal_(self.proj.weight, std=embedding_dim**-0.5)
        for bias in (self.proj.bias, self.norm.bias):
            nn.init.zeros_(bias).requires_grad_(False)

    def forward(self, embedding_BRE: Tensor) -> Tensor:
        rows, dim = self.proj.in_features, self.norm.normalized_shape[0]
        if embedding_BRE.ndim != 3 or embedding_BRE.shape[-1] != rows:
            raise ValueError(f"embedding must be [batch, rows, {rows}]")
        tokens = self.proj(embedding_BRE.to(self.proj.weight.dtype))
        return self.norm(tokens.reshape(len(embedding_BRE), -1, dim))


class UserAttention(nn.Module):
    """The new key and value maps of one cross-attention. Both bias-free; values start at zero."""

    def __init__(self, token_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(token_dim, inner_dim, bias=False)
        self.to_v_ip = nn.Linear(token_dim, inner_dim, bias=False)
        nn.init.zeros_(self.to_v_ip.weight)

    def project(self, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, ``[B, T, I]`` each."""
        return self.to_k_ip(tokens_BTD), self.to_v_ip(tokens_BTD)


def attend(query_BHQd: Tensor, users_BUT2I: Tensor) -> Tensor:
    """Sum over a row's users of their separate attentions, ``[B, H, Q, d]``.

    Users are laid beside the heads, never beside the tokens or the rows: no softmax ever sees two
    users, and no row another row's.
    """
    B, H, Q, d = query_BHQd.shape
    U, T = users_BUT2I.shape[1:3]
    laid = users_BUT2I.view(B, U, T, 2, H, d).permute(3, 0, 1, 4, 2, 5)
    key, value = laid.to(query_BHQd.dtype).reshape(2, B, U * H, T, d)
    query = query_BHQd.unsqueeze(1).expand(B, U, H, Q, d).reshape(B, U * H, Q, d)
    first, *others = F.scaled_dot_product_attention(query, key, value).chunk(U, 1)
    return sum(others, first)


class UserAttnProcessor(PlainAttnProcessor):
    """Plain cross-attention, plus the user's branch.

    Not a module: the adapter owns the weights, so the denoiser's own state dict stays the base's.
    Nothing in it tells one attention from another but what ``condition`` holds: ``torch.compile``
    would make a form of the same block for each.
    """

    def __init__(self, condition: Condition, backend: AttentionBackendName | None = None) -> None:
        super().__init__(backend)
        self.condition = condition

    def beside(self, query_BHQd: Tensor) -> Tensor | None:
        users_BUT2I = self.condition.users_BUT2I
        if users_BUT2I is None:
            return None
        drawn, rows = len(users_BUT2I), len(query_BHQd)
        if drawn > rows:
            raise ValueError(f"users for {drawn} rows, the forward has {rows}")
        return attend(query_BHQd[:drawn], users_BUT2I)


class UserAdapter(nn.Module):
    """Projection and user attentions for a list of a denoiser's cross-attentions.

    It does not own the denoiser and does not appear in its state dict. One adapter drives one
    denoiser.
    """

    def __init__(
        self, attentions: Sequence[Attention], embedding_dim: int, tokens_per_row: int = 4
    ) -> None:
        super().__init__()
        for attn in attentions:
            if not is_plain(attn):
                raise ValueError("the user branch needs plain cross-attention")
        widths = {attn.to_k.in_features for attn in attentions}
        if len(widths) != 1:
            raise ValueError(f"cross-attentions must share one width, found {sorted(widths)}")
        self.token_dim = widths.pop()
        self.embedding_dim = embedding_dim
        self.projection = UserProjection(embedding_dim, self.token_dim, tokens_per_row)
        self.branches = nn.ModuleList(
            UserAttention(self.token_dim, attn.to_k.out_features) for attn in attentions
        )
        self.has_biases = False
        self._inner_dims = [attn.to_k.out_features for attn in attentions]
        self._conditions = [Condition() for _ in attentions]
        for attn, condition in zip(attentions, self._conditions, strict=True):
            backend = getattr(attn.processor, "_attention_backend", None)  # stays as it was chosen
            attn.set_processor(UserAttnProcessor(condition, backend))

    @classmethod
    def for_unet(cls, unet: nn.Module, embedding_dim: int, tokens_per_row: int = 4) -> UserAdapter:
        """A new adapter wherever a diffusers UNet reads the text: the cross-attentions of a
        ``UNet2DConditionModel`` (SD 1.5, SDXL, …), all attentions of a ``StableCascadeUNet``.

        The order is that of the UNet's modules, which numbers the keys of the saved file.
        """
        adapter = cls(_cross_attentions(unet), embedding_dim, tokens_per_row)
        return adapter.to(next(unet.parameters()).device)

    @classmethod
    def load(cls, path: str | PathLike[str], unet: nn.Module) -> UserAdapter:
        """An adapter saved by ``save``, on ``unet``, with the UNet's device and dtype.

        Raises ReleaseError for a file that is no plain IP-Adapter of this UNet.
        """
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ReleaseError(f"cannot read the adapter {Path(path).name}: {error}") from None
        attentions = _cross_attentions(unet)
        weight = state.get("image_proj.proj.weight")
        if weight is None or weight.shape[0] % (width := attentions[0].to_k.in_features):
            raise ReleaseError(
                f"{Path(path).name} is of another backbone: its projection does not fit"
            )
        adapter = cls(attentions, weight.shape[1], weight.shape[0] // width)
        own = adapter._file_tensors()
        misfits = sorted(own.keys() ^ state.keys()) + [
            key for key in own.keys() & state.keys() if own[key].shape != state[key].shape
        ]
        if misfits:
            named = ", ".join(misfits[:3])
            raise ReleaseError(f"{Path(path).name} is of another backbone: {named} …")
        adapter.has_biases = any(bool(x.any()) for key, x in state.items() if key.endswith(".bias"))
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(state[key])
        parameter = next(unet.parameters())
        return adapter.to(device=parameter.device, dtype=parameter.dtype)

    def save(self, path: str | PathLike[str]) -> None:
        """Write an IP-Adapter file (safetensors) that unmodified diffusers loads.

        Keys are those ``diffusers.loaders.unet._convert_ip_adapter_attn_to_diffusers`` reads:
        attentions are numbered 1, 3, 5, … in the order of the UNet's modules, which is that of
        ``attn_processors`` where a UNet has them. (For a ``StableCascadeUNet`` diffusers has no
        loader; the file is numbered alike.)
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({key: x.contiguous() for key, x in self._file_tensors().items()}, path)

    def project(self, embedding_BRE: Tensor) -> Tensor:
        """Embeddings ``[B, rows, dim]`` to all branches' keys and values, ``[B, T, 2, P]``."""
        tokens_BTD = self.projection(embedding_BRE)
        each = [cast(UserAttention, branch).project(tokens_BTD) for branch in self.branches]
        keys, values = (torch.cat(all_branches, -1) for all_branches in zip(*each, strict=True))
        return torch.stack([keys, values], -2)

    @contextmanager
    def condition(
        self, users_BUT2P: Tensor | None, weights_BU: Tensor | None = None
    ) -> Iterator[None]:
        """Forwards inside draw their first B rows for these users, further rows for nobody; None
        is the plain base.

        A row without a user has weight 0 (what it attends to may be anything finite); weights
        default to 1. With gradient checkpointing, call ``backward`` inside too: it runs the
        forward again.
        """
        if users_BUT2P is not None and weights_BU is not None:
            scale_BU2 = torch.stack([torch.ones_like(weights_BU), weights_BU], -1)
            users_BUT2P = users_BUT2P * scale_BU2[:, :, None, :, None].to(users_BUT2P.dtype)
        each: Sequence[Tensor | None] = [None] * len(self._conditions)
        if users_BUT2P is not None:
            each = users_BUT2P.split(self._inner_dims, -1)
        before = self._tell(each)
        try:
            yield
        finally:
            self._tell(before)

    def _tell(self, each_BUT2I: Sequence[Tensor | None]) -> list[Tensor | None]:
        together = zip(self._conditions, each_BUT2I, strict=True)
        return [condition.tell(users_BUT2I) for condition, users_BUT2I in together]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Everything but the two biases that stay at zero."""
        return [p for p in self.parameters() if p.requires_grad]

    def _file_tensors(self) -> dict[str, Tensor]:
        projection = {f"image_proj.{k}": v for k, v in self.projection.state_dict().items()}
        branches = {
            f"ip_adapter.{2 * i + 1}.{k}": v
            for i, branch in enumerate(self.branches)
            for k, v in branch.state_dict().items()
        }
        return projection | branches


def _cross_attentions(unet: nn.Module) -> list[Attention]:
    """All but those that see the picture alone. Stable Cascade's see text and picture at once."""
    found = ((name, m) for name, m in unet.named_modules() if isinstance(m, Attention))
    return [attention for name, attention in found if not name.endswith("attn1")]
