"""A Ray of one process alone, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import ray

OBJECT_STORE_BYTES = 200 * 2**20
START_ATTEMPTS = 4


def start_ray(scratch: str) -> None:
    """A Ray of this process alone, with everything of it in ``scratch``. Raises ``RuntimeError``.

    Its raylet gives its agents 15 s to start and ends if they take longer, which on a machine that
    is busy just now they do; no setting changes that, so it is started again."""
    for _ in range(START_ATTEMPTS):
        try:
            with _all_or_nothing():
                ray.init(
                    "local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=scratch,
                    logging_level="ERROR",
                )
            return
        except Exception as error:  # Ray's own is a bare Exception
            reason = str(error)
    raise RuntimeError(f"Ray does not start: {reason}")


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Ray forgets the processes of a start that failed. They end here."""
    before = psutil.Process().children(recursive=True)
    try:
        yield
    except BaseException:
        begun = [p for p in psutil.Process().children(recursive=True) if p not in before]
        for process in begun:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(begun)
        raise
