"""The few collectives that reinforcement learning needs.

With one process each of them is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import distributed, nn

T = TypeVar("T")


def world_size() -> int:
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def gather(value: Any) -> list[Any]:
    """One picklable value per rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def fail_together(action: Callable[[], T], kind: type[Exception]) -> T:
    """Runs ``action`` and returns its result.

    Where it raises ``kind`` on any process, all processes raise that, with the message of the first
    one, so that none is left waiting for the others.
    """
    problem: Exception | None = None
    try:
        result = action()
    except kind as error:
        problem = error
    messages = gather(None if problem is None else str(problem))
    for message in messages:
        if message is not None:
            raise kind(message) from problem
    return result


def own_gradients(strategy: Strategy) -> AbstractContextManager[None]:
    """Inside, a backward pass adds to this process's gradients and waits for no other process.

    Otherwise DDP reduces at every backward pass, and processes with different numbers of
    micro-batches would wait for each other for ever.
    """
    return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds the gradients of all ranks, in place. A rank without a gradient adds zeros."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad, op=distributed.ReduceOp.SUM)
