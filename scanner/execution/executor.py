"""The ways to run blocks of work: a function of one plain value, that gives an Answer.

    block, tasks -> Executor.map -> an Answer a task, in their order

A block depends on its task alone, so its answer is the same wherever it runs, and may be computed
again.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from deepssim_scan.execution.answer import Answer

T = TypeVar("T")
Block = Callable[[T], Answer]


class Executor(Protocol):
    """Runs blocks; `workers` of them at once, or 0 in this process.

    `gpu` tells whether every worker has a GPU; None where workers are on this machine.
    """

    @property
    def workers(self) -> int: ...

    @property
    def gpu(self) -> bool | None: ...

    def map(self, block: Block[T], tasks: Iterable[T]) -> Generator[Answer, None, None]:
        """Give the answer of each task, in their order; what is in flight is bounded.

        `block` is a function of a module, and tasks are picklable. Closing the generator gives up
        what is in flight. Raises the ScanError that a block raised, or ScanError when workers die.
        """

    def close(self) -> None:
        """End the workers."""


class InProcess:
    """Runs blocks in this process, in one thread on which torch uses no other."""

    workers = 0
    gpu = None

    def __init__(self) -> None:
        """Start nothing yet."""
        self._thread = ThreadPoolExecutor(1, initializer=_use_one_thread)

    def map(self, block: Block[T], tasks: Iterable[T]) -> Generator[Answer, None, None]:
        """Give the answer of each task, in their order."""
        for task in tasks:
            yield self._thread.submit(block, task).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def _use_one_thread(*_: Any) -> None:
    import torch

    torch.set_num_threads(1)


def sliced(count: int, size: int) -> Iterator[slice]:
    """Cut `count` things into slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
