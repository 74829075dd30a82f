"""Every knob, once.

Flags of ``ppd serve`` beat ``PPD_*`` variables (``PPD_ENCODER__THREADS=2`` for a part's own), which
beat the ``args:`` of the configuration file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ppd_serve.keys import is_project
from ppd_serve.logs import LogFormat

STUDIO = Path(__file__).parent / "assets" / "studio"
CORES = os.cpu_count() or 1


class Part(BaseModel):
    """Where a part runs. ``cpus`` and ``gpus`` are what Ray reserves; ``threads`` is what torch
    uses, which Ray would otherwise make 1."""

    model_config = ConfigDict(extra="forbid")

    cpus: float = Field(0.1, ge=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Autoscaling(BaseModel):
    """Between ``min`` and ``max`` replicas: so many that each has about
    ``target_ongoing_requests`` calls to answer."""

    model_config = ConfigDict(extra="forbid")

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)
    target_ongoing_requests: float = Field(gt=0)

    @model_validator(mode="after")
    def _a_range(self) -> Autoscaling:
        if self.max < self.min:
            raise ValueError("max must be at least min")
        return self


def _kind(replicas: object) -> str:
    return "autoscaling" if isinstance(replicas, dict | Autoscaling) else "number"


Replicas = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[Autoscaling, Tag("autoscaling")],
    Discriminator(_kind),
]


class EncoderPart(Part):
    """``replicas``: how many, or between how many (``Autoscaling``)."""

    threads: int = Field(min(2, CORES), ge=1)
    quantisation: Literal["4bit", "8bit"] | None = None
    replicas: Replicas = 1


class Capacity(BaseModel):
    """``rows`` pictures are denoised together, ``queue`` more may wait. What Ray Serve's
    ``user_config`` may say of a diffuser while it runs."""

    model_config = ConfigDict(extra="forbid")

    rows: int = Field(16, ge=1)
    queue: int = Field(256, ge=0)


class DiffuserPart(Part, Capacity):
    """The capacity is each replica's. ``compile`` is for GPUs: a start that takes minutes, then
    faster steps. ``attention_backend``: a kernel by diffusers' name; None: torch's choice."""

    threads: int = Field(CORES, ge=1)
    replicas: Replicas = 1
    compile: bool = False
    attention_backend: str | None = None

    @field_validator("attention_backend")
    @classmethod
    def _a_kernel(cls, name: str | None) -> str | None:
        if name is not None:
            from diffusers.models.attention_dispatch import AttentionBackendName

            known = sorted(backend.value for backend in AttentionBackendName)
            if name not in known:
                raise ValueError(f"must be one of {', '.join(known)}")
        return name


class Settings(BaseSettings):
    """What ``ppd serve`` can be told.

    data: directory for the database, pictures and the index, unless ``database_url`` and
    ``blob_url`` (fsspec) say otherwise. cors_origins: web pages that may call from a browser, as
    ``https://host``, or ``*`` for all. api_keys: key → project, beside those of ``ppd keys``;
    never stored, they may do everything. link_secret: signs picture links; made and kept in
    ``data`` if not given. encode_wait_s: how long a call waits for the encoder. drain_s: how long a
    stopping server waits for what is being drawn. log_format: lines for people or JSON.
    ray_address: a running cluster; without one, a private Ray is started.
    """

    model_config = SettingsConfigDict(
        env_prefix="PPD_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    release: Path = STUDIO
    data: Path = Path("data")
    database_url: str | None = None
    blob_url: str | None = None
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    public_url: str | None = None
    cors_origins: list[str] = []
    api_keys: dict[str, str] = Field(default_factory=dict, repr=False)
    allow_unauthenticated: bool = False
    link_secret: SecretStr | None = None
    encode_wait_s: float = Field(10.0, gt=0, le=600)
    drain_s: float = Field(120.0, gt=0)
    index_save_s: float = Field(30.0, gt=0)
    log_format: LogFormat = "text"
    gateways: int = Field(1, ge=1)
    gateway: Part = Part()
    index: Part = Part()
    encoder: EncoderPart = EncoderPart()
    diffuser: DiffuserPart = DiffuserPart()
    ray_address: str | None = None

    @field_validator("release", "data")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()  # other processes have other working directories

    @field_validator("blob_url")
    @classmethod
    def _absolute_unless_url(cls, url: str | None) -> str | None:
        return url if url is None or "://" in url else str(Path(url).expanduser().absolute())

    @field_validator("database_url")
    @classmethod
    def _absolute_if_file(cls, url: str | None) -> str | None:
        if url and url.startswith("sqlite") and not url.partition(":///")[2].startswith("/"):
            raise ValueError("needs an absolute path: sqlite:////path/to/file")
        return url

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/?#\s*]+", origin):
                raise ValueError("an origin is * or like https://host:port, without a path")
        return origins

    @field_validator("api_keys")
    @classmethod
    def _projects(cls, keys: dict[str, str]) -> dict[str, str]:
        for key, project in keys.items():
            if len(key) < 16:
                raise ValueError("a key needs at least 16 characters")
            if not is_project(project):
                raise ValueError("a project is letters, digits, - and _")
        return keys

    @field_validator("link_secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret) < 16:
            raise ValueError("a secret needs at least 16 characters")
        return secret

    @model_validator(mode="after")
    def _together(self) -> Settings:
        shared = self.database_url and not self.database_url.startswith("sqlite") and self.blob_url
        if not shared and (self.gateways > 1 or self.ray_address):
            raise ValueError(
                "more replicas or nodes need PostgreSQL (database_url) and a shared blob_url"
            )
        if self.gateways > 1 and self.link_secret is None:
            raise ValueError("more replicas need one link_secret")
        return self

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data / 'ppd.db'}"

    @property
    def blobs(self) -> str:
        return self.blob_url or str(self.data / "blobs")

    @classmethod
    def load(
        cls, file: Mapping[str, Any] | None = None, flags: Mapping[str, Any] | None = None
    ) -> Settings:
        """Flags over ``PPD_*`` over the file's ``args``. Raises pydantic's ``ValidationError``."""

        class Layers(cls):  # type: ignore[misc, valid-type]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **others: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return (
                    init_settings,
                    env_settings,
                    InitSettingsSource(settings_cls, dict(file or {})),
                )

        layers = Layers(**(flags or {}))
        return cls.model_construct(**{name: getattr(layers, name) for name in cls.model_fields})
