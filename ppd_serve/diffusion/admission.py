"""What is refused before it waits: a request that this backbone and adapter cannot draw."""

from __future__ import annotations

import math

import numpy as np

from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.request import MAX_USERS, GenerationRequest
from ppd_serve.diffusion.user_attention import UserAdapter
from ppd_serve.errors import InvalidInput


def check(
    request: GenerationRequest,
    backbone: Backbone,
    adapter: UserAdapter | None,
    embedding_rows: int,
) -> None:
    """Raise InvalidInput, naming the field, unless the picture can be started as it is."""
    backbone.latent_shape(request.width, request.height)
    backbone.schedule(request.sampler, request.steps)
    for field in ("guidance_scale", "guidance_rescale", "preference_scale"):
        if not math.isfinite(getattr(request, field)):
            raise InvalidInput("must be finite", field=field)
    low, high = request.guidance_interval
    if not 0 <= low <= high <= 1:
        raise InvalidInput("must be two shares, 0 ≤ from ≤ to ≤ 1", field="guidance_interval")
    if request.preview_every < 0:
        raise InvalidInput("must be at least 0", field="preview_every")
    if len(request.users) > MAX_USERS:
        raise InvalidInput(f"at most {MAX_USERS} users a picture", field="users")
    if request.users and adapter is None:
        raise InvalidInput("this backbone has no adapter", field="users")
    for embedding, weight in request.users:
        shape = (embedding_rows, adapter.embedding_dim if adapter else 0)
        if embedding.shape != shape:
            raise InvalidInput(f"an embedding must have shape {shape}", field="users")
        if not (math.isfinite(weight) and np.isfinite(embedding).all()):
            raise InvalidInput("weights and embeddings must be finite", field="users")
