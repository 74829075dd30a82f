"""Finished rows to pictures, a few between two steps of the rows that still run.

Between steps, in slices, and not in a thread beside them: decoding one picture is about the work of
a step, so a second thread would take the same cores (or the same GPU, with memory that no
batch limit knows of) from the steps it is meant not to hold up. What holds a running row up is
waiting for many pictures at once. So a finished row leaves its place in the batch at once, and each
tick decodes half of the pictures that wait: of sixteen that finish together a newcomer waits for
eight before its first step, then for four; what finishes in every tick is decoded as fast as it
comes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ppd_serve.device_errors import is_device_lost
from ppd_serve.diffusion.backbone import Backbone
from ppd_serve.diffusion.request import Result, Timing
from ppd_serve.diffusion.rows import Row, final_latents


def next_to_decode(finished: Sequence[Row]) -> list[Row]:
    """Half of them (rounded up), if so many have the latent shape of the first."""
    most = (len(finished) + 1) // 2
    return [row for row in finished if row.shape == finished[0].shape][:most]


def decode_rows(rows: Sequence[Row], backbone: Backbone) -> list[Result | Exception]:
    """The pictures of rows of one latent shape, decoded together.

    If that fails they are halved, until only those that cannot be decoded alone have an error.
    """
    if not rows:
        return []
    try:
        return _decoded(rows, backbone)
    except Exception as error:
        if is_device_lost(error):
            raise
        if len(rows) == 1:
            return [error.with_traceback(None)]  # its frames keep what was decoded
    # Out of the handler, so that the halves have the memory of what failed.
    half = len(rows) // 2
    return decode_rows(rows[:half], backbone) + decode_rows(rows[half:], backbone)


def _decoded(rows: Sequence[Row], backbone: Backbone) -> list[Result | Exception]:
    latents_BCHW = final_latents(rows)
    pictures = backbone.decode(latents_BCHW)
    now = time.monotonic()
    return [
        Result(
            pixels,
            latents,
            row.request.seed,
            Timing(row.started - row.ticket.submitted, now - row.started),
        )
        for row, pixels, latents in zip(
            rows, pictures, latents_BCHW.float().cpu().numpy(), strict=True
        )
    ]
