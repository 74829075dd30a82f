"""Whether people are read as the release's server will read them: an adapter that learned other
embeddings knows nobody."""

from __future__ import annotations

from typing import Any

from ppd_serve.errors import ReleaseError
from ppd_serve.preferences.quantisation import Quantisation
from ppd_serve.release import Release
from ppd_serve.release_encoder import embedding_of
from training.lineage import base_of


def refuse_other_release(about: dict[str, Any], release: Release, *, by_user: bool) -> None:
    """ReleaseError if the set that is ``about`` this was prepared with another base than the
    release's, or ``by_user`` another embedding space; sets that are made for it, as the studio's,
    say nothing of either."""
    own: dict[str, str | None] = {"base": base_of(release)}
    if by_user:
        own["embedding_space"] = release.embedding_space
    for what, wanted in own.items():
        if what in about and about[what] != wanted:
            raise ReleaseError(
                f"release {release.name} {release.version}: the data was prepared with "
                f"{about['release']}, whose {what.replace('_', ' ')} is another"
            )


def refuse_other_space(release: Release, dtype: str, quantisation: Quantisation | None) -> None:
    """ReleaseError if the release's encoder, run like this, embeds into another space than the
    release's. Reads the encoder's files and loads nothing."""
    space = embedding_of(release, dtype, quantisation)["embedding_space"]
    if space is None and release.encoder_path is not None:
        raise ReleaseError(f"release {release.name}: its encoder has no transform; fit it first")
    if space is not None and space != release.embedding_space:
        how = f"{dtype} {quantisation}" if quantisation else dtype
        raise ReleaseError(
            f"the encoder's embedding space in {how} is {space}, the release's "
            f"{release.embedding_space}: dtype and quantisation must be as its server has them"
        )
