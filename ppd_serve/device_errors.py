"""What a device's errors mean, for whoever computes on one: no memory for so much at once, or no
device any more."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error on a GPU; on a CPU, and in the libraries below, only words say it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def is_device_lost(error: BaseException) -> bool:
    """After an illegal access, an ECC error or the like every call on this GPU fails for as long as
    the process lives."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
