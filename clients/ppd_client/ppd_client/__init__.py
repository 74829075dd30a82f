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
from .events import Done, Event, Painted, Preview, Queued, Step
from .images import Picture
from .listening import AsyncListening, Listening
from .models import (
    Embedding,
    EmbeddingsPage,
    EmbeddingState,
    EmbeddingVersion,
    Feedback,
    GeneratedImage,
    Generation,
    GenerationRecord,
    ImageRef,
    LinkedImage,
    Neighbor,
    PreferencesAdded,
    PreferencesPage,
    Problem,
    Question,
    Readiness,
    Release,
    Releases,
    StoredPair,
    TasteCode,
    User,
    UserUsed,
    UserWeight,
)

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncListening",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Done",
    "Drawing",
    "Drawings",
    "Embedding",
    "EmbeddingState",
    "EmbeddingVersion",
    "EmbeddingsPage",
    "Event",
    "Feedback",
    "Forbidden",
    "GeneratedImage",
    "Generation",
    "GenerationRecord",
    "ImageRef",
    "InvalidInput",
    "LinkedImage",
    "Listening",
    "Neighbor",
    "NotFound",
    "PPDError",
    "Painted",
    "Pair",
    "Picture",
    "PreferencesAdded",
    "PreferencesPage",
    "Preview",
    "Problem",
    "Question",
    "Queued",
    "Readiness",
    "Release",
    "Releases",
    "ServerError",
    "Step",
    "StoredPair",
    "TasteCode",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "User",
    "UserUsed",
    "UserWeight",
]
