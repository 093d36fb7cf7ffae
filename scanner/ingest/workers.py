"""Runs a function over many items, in processes that may hang, crash or run out of memory.

    chunks of items -> each -> one answer per item, or one Rejection, in their order

Each worker process has a thread in this process. The thread sends it a chunk of items and receives
the answers one by one, so it knows which item a process died of. That item is tried once more in a
fresh process, since the first may have died by bad luck. The answers before it are kept; the items
after it go on in the fresh process.

A worker sets a timer for each item. Its signal has the default action, so the kernel ends a process
that hangs, inside C code too, and also when this process is gone. A limit on the address space
turns too much memory into MemoryError. A worker ends when its pipe closes, and the pipe closes
when this process ends, however that happens.
"""

import atexit
import resource
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

from deepssim_scan.errors import ScanError
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.rejection import Rejection

T = TypeVar("T")
R = TypeVar("R")
_Task = tuple[Future[list[R | Rejection]], Sequence[T]]

_SPAWN = get_context("spawn")  # a process forked after torch or FAISS ran threads can hang

_reaping = Lock()
"""Held while a process is started or waited for. multiprocessing waits for ended processes when it
starts one, and of two threads that wait for one process only one learns how it ended."""


def each(
    work: Callable[[T], R], chunks: Iterator[Sequence[T]], workers: int, limits: Limits
) -> Generator[R | Rejection, None, None]:
    """Run `work` on every item of every chunk, in `workers` processes.

    An item that two processes died of gets a Rejection: "decoder-timeout" or "decoder-crashed",
    by the second death. An item whose answer does not fit into memory gets "too-large". At most
    2 * workers + 2 chunks are in flight. Closing the generator ends the processes at once.

    `work` must be picklable, and must not raise: an exception ends its process.
    Raises ScanError when no process can be started.
    """
    crew = [_Worker(work, limits) for _ in range(workers)]
    tasks: SimpleQueue[_Task[R, T] | None] = SimpleQueue()
    # Not an executor's threads, which an interpreter that ends would wait for.
    threads = [Thread(target=_work_off, args=(worker, tasks), daemon=True) for worker in crew]
    waiting: deque[Future[list[R | Rejection]]] = deque()

    def end() -> None:
        for worker in crew:
            worker.stop()
        for _ in crew:
            tasks.put(None)
        for worker, thread in zip(crew, threads, strict=True):
            thread.join()
            worker.clear()

    # When the interpreter ends, multiprocessing kills the processes; the threads would replace
    # them, and it would wait for those. And a generator closed after the threads are frozen would
    # wait for locks that they hold.
    atexit.register(end)
    try:
        for thread in threads:
            thread.start()
        while True:
            while len(waiting) < 2 * workers + 2 and (chunk := next(chunks, None)) is not None:
                waiting.append(Future())
                tasks.put((waiting[-1], chunk))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        atexit.unregister(end)
        end()


def _work_off(worker: "_Worker[T, R]", tasks: "SimpleQueue[_Task[R, T] | None]") -> None:
    """Run chunks until there is None: the work of the thread of one worker process."""
    while (task := tasks.get()) is not None:
        future, chunk = task
        try:
            future.set_result(worker.run(chunk))
        except Exception as error:
            future.set_exception(error)


class _Stopped(Exception):
    """A worker was used after `stop`."""


class _Worker(Generic[T, R]):
    """One worker process at a time, started when needed and replaced when it dies."""

    def __init__(self, work: Callable[[T], R], limits: Limits) -> None:
        self._work, self._limits = work, limits
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._changing = Lock()  # `stop` is called by another thread

    def run(self, items: Sequence[T]) -> list[R | Rejection]:
        """Return an answer for each item, through as many processes as that takes."""
        answers: list[R | Rejection] = []
        deaths = 0  # of processes at the item whose turn it is
        while len(answers) < len(items):
            before = len(answers)
            death = self._answer(items[before:], answers)
            deaths = deaths + 1 if len(answers) == before else 1
            if death is not None and deaths == 2:
                answers.append(death)
                deaths = 0
        return answers

    def _answer(self, items: Sequence[T], answers: list[R | Rejection]) -> Rejection | None:
        """Add answers until all are there, or return what the process died of."""
        pipe = self._pipe or self._start()
        try:
            pipe.send(items)
            for _ in items:
                answers.append(pipe.recv())  # noqa: PERF401 - those before a death are kept
        except (EOFError, OSError):
            return self._cause(self.clear())
        return None

    def _start(self) -> Connection:
        ours, theirs = _SPAWN.Pipe()
        arguments = theirs, self._work, self._limits
        process = _SPAWN.Process(target=_serve, args=arguments, daemon=True)
        try:
            with self._changing, _reaping, theirs:
                if self._stopped:
                    raise _Stopped
                process.start()
                self._process, self._pipe = process, ours
            ours.recv()
        except (EOFError, OSError) as error:
            raise ScanError(
                "decoding: worker processes die as they start. Decode with 0 workers; in a script, "
                "start the run under if __name__ == '__main__'."
            ) from error
        return ours

    def stop(self) -> None:
        """End the process now, and start no other; what waits for it raises."""
        with self._changing:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def clear(self) -> int | None:
        """Forget a process that is ending; return its exit code, negative for a signal."""
        with self._changing:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if process is None or pipe is None:
            return None
        pipe.close()
        wait([process.sentinel], timeout=5)
        with _reaping:
            process.kill()  # nothing, unless it closed its pipe and lives on
            process.join()
        return process.exitcode

    def _cause(self, code: int | None) -> Rejection:
        if code == -signal.SIGALRM:
            seconds = f"{self._limits.max_seconds:g} seconds"
            return Rejection("decoder-timeout", f"over the limit of {seconds}, twice")
        ended = f"exit code {code}"
        if code is not None and code < 0:
            ended = signal.strsignal(-code) or f"signal {-code}"
        return Rejection("decoder-crashed", f"its process died twice: {ended}")


def _serve(pipe: Connection, work: Callable[[T], R], limits: Limits) -> None:
    """Answer chunks of items until the pipe closes: the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    _limit_memory(limits.max_memory)
    pipe.send(None)  # started: from now on a death is that of an item
    with suppress(EOFError, ConnectionError):  # the parent closed the pipe, or is gone
        while True:
            for item in pipe.recv():
                pipe.send_bytes(_answer(work, item, limits))


def _answer(work: Callable[[T], R], item: T, limits: Limits) -> memoryview:
    """Return an item's answer, pickled."""
    try:
        return ForkingPickler.dumps(_timed(work, item, limits))
    except MemoryError:
        return ForkingPickler.dumps(Rejection("too-large", "not enough memory"))


def _limit_memory(more: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    lowest = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))


def _timed(work: Callable[[T], R], item: T, limits: Limits) -> R:
    signal.setitimer(signal.ITIMER_REAL, limits.max_seconds)
    try:
        return work(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
