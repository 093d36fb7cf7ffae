"""Runs blocks in processes of this machine, one block at a time in each.

Each process has a thread in this process. The thread sends it a task and waits for the answer. A
process that dies is replaced, and its task runs once more, since the first may have died by bad
luck. Processes start at once, and work until `close`.
"""

import atexit
import pickle
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any

from deepssim_scan.errors import ScanError
from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.execution.child import Child, Stopped, ended
from deepssim_scan.execution.executor import Block, T
from deepssim_scan.execution.nursery import NURSERY
from deepssim_scan.execution.serving import checked, serving

# What nearly all blocks need; macOS allows no fork of a process that has loaded much.
_LOADED = ("deepssim_scan.encoder.inference", "deepssim_scan.matching.pairs")
_Task = tuple[Future[Answer], Block[Any], Any]


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its control group."""
    from dask.system import CPU_COUNT

    return max(1, CPU_COUNT)


class LocalProcesses:
    """Runs blocks in `workers` processes; each sees one of the `gpus`, where there are any."""

    gpu = None

    def __init__(self, workers: int, gpus: int = 0) -> None:
        """Start the processes, and do not wait for them."""
        self.workers = workers
        with suppress(OSError):  # the first task tells of it
            NURSERY.load(_LOADED if sys.platform == "linux" else ())
        seen = (number % gpus if gpus else None for number in range(workers))
        self._crew = [Child(partial(serving, gpu)) for gpu in seen]
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        # Not an executor's threads, which an interpreter that ends would wait for.
        self._threads = [
            Thread(target=_work_off, args=(child, self._tasks), daemon=True) for child in self._crew
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    def map(self, block: Block[T], tasks: Iterable[T]) -> Generator[Answer, None, None]:
        """Give the answer of each task, in their order; at most 2 * workers + 2 are in flight."""
        waiting: deque[Future[Answer]] = deque()
        tasks = iter(tasks)
        try:
            while True:
                for task in islice(tasks, 2 * self.workers + 2 - len(waiting)):
                    waiting.append(Future())
                    self._tasks.put((waiting[-1], block, task))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes at once."""
        atexit.unregister(self.close)
        for child in self._crew:
            child.kill(forever=True)
        if not any(child.started for child in self._crew):
            NURSERY.kill()  # which may be loading, for seconds
        for _ in self._crew:
            self._tasks.put(None)
        for thread, child in zip(self._threads, self._crew, strict=True):
            thread.join()
            child.end()


def _work_off(child: Child, tasks: "SimpleQueue[_Task | None]") -> None:
    """Run tasks until there is None: the work of the thread of one process."""
    with suppress(ScanError, Stopped):  # the first task tells of it
        child.start()
    while (task := tasks.get()) is not None:
        future, block, value = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(_answer(child, block, value))
            except Exception as error:
                future.set_exception(error)


def _answer(child: Child, block: Block[T], task: T) -> Answer:
    """Run a block in a process, and in another one where it dies of it."""
    message = pickle.dumps((block, task))
    for _ in range(2):
        try:
            child.send(message)
            answer = Answer.unpack(child.receive())
        except (EOFError, OSError) as error:
            code = child.end()
            cause = str(error) if code is None else ended(code)
        except NoAnswer as error:
            child.end()
            cause = str(error)
        else:
            return checked(answer)
    raise ScanError(
        f"A worker process failed twice at the same work ({cause}). If it was "
        "killed, memory is too small for so many: give fewer --workers."
    )
