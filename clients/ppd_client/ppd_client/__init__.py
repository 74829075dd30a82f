"""Python client for ppd-serve, the personalised text-to-image server.

from ppd_client import Client

with Client("http://127.0.0.1:8000") as client:
    first, second = client.generate("a red fish at sea", n=2).images
    client.add_preferences("ann", [("a red fish at sea", second, first)])
    png = client.generate_png("a castle at night", user_id="ann")
"""

from .calls import Drawing, Drawings, Pair
from .client import AsyncClient, Client
from .errors import (
    APIError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidInput,
    NotFound,
    PPDError,
    ServerError,
    TimedOut,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnexpectedAnswer,
)
from .images import Picture
from .models import (
    Embedding,
    EmbeddingState,
    GeneratedImage,
    Generation,
    ImageRef,
    Neighbor,
    PreferencesAdded,
    PreferencesPage,
    Readiness,
    Release,
    Releases,
    StoredPair,
    User,
    UserUsed,
    UserWeight,
)

__all__ = [
    "APIError",
    "AsyncClient",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Drawing",
    "Drawings",
    "Embedding",
    "EmbeddingState",
    "Forbidden",
    "GeneratedImage",
    "Generation",
    "ImageRef",
    "InvalidInput",
    "Neighbor",
    "NotFound",
    "PPDError",
    "Pair",
    "Picture",
    "PreferencesAdded",
    "PreferencesPage",
    "Readiness",
    "Release",
    "Releases",
    "ServerError",
    "StoredPair",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "User",
    "UserUsed",
    "UserWeight",
]
