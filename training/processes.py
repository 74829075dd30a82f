"""Several processes that train as one: each holds a share of the effective batch.

They are started by ``torchrun``, ``accelerate launch`` or Ray Train; accelerate finds out. Alone,
everything here is the identity. Gradients are sums over shares, so the number of processes changes
nothing but the order of additions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce
from torch import Tensor, nn


def rank() -> int:
    return int(PartialState().process_index)


def world_size() -> int:
    return int(PartialState().num_processes)


def share(count: int) -> range:
    """This process's samples of an effective batch of ``count``. ValueError if it cannot be cut."""
    if count % world_size():
        raise ValueError(f"batch: {count} samples cannot be cut for {world_size()} processes")
    size = count // world_size()
    return range(rank() * size, (rank() + 1) * size)


def gathered(share_B: Tensor) -> Tensor:
    """The whole batch's values in the order of the samples, without gradient, ``[world·B]``."""
    return gather(share_B.detach().contiguous()) if world_size() > 1 else share_B.detach()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up what every share's losses left in ``.grad``."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # no sample of this share needed it, another's may
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad = reduce(parameter.grad, "sum")


def any_of_them(flag: bool) -> bool:
    """True if it is true for one of the processes: they stop together."""
    if world_size() == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=PartialState().device), "sum") > 0)
