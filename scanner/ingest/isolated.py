"""Runs a function over items in a process that may hang, crash or run out of memory.

    items -> Isolated.answers -> an Answer or a Rejection each, in their order

The item that the process died of is tried once more in a fresh process, since the first may have
died by bad luck. One that computed for as long as it may is not: its time does not depend on what
else the machine does. What was answered before it is kept; the items after it go on in the fresh
process.

The process sets two timers for each item, of the time that it computes and of the time that
passes. Their signals have the default action, so the kernel ends a process that hangs, inside C
code too, and also when this process is gone. A limit on the address
space turns too much memory into MemoryError.
"""

import os
import pickle
import resource
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.execution.child import Child, Work, ended
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.rejection import Rejection

T = TypeVar("T")

_WAITING = 4  # times as long as an item may compute, it may wait for the disk and the machine
_ENDLESS = signal.SIGPROF, signal.SIGALRM  # of having computed, and of having waited, too long
_AHEAD = 4  # items that the process has, so that it does not wait for the next one
_REJECTED = "rejected"  # in the records of an answer: a reason and its detail


@cache
def isolated(limits: Limits) -> "Isolated":
    """Return the process of this one that items are given to under these limits."""
    return Isolated(limits)


class Isolated:
    """A process under limits, started when it is needed and replaced when it dies."""

    def __init__(self, limits: Limits) -> None:
        """Start nothing yet."""
        self.limits = limits
        self._child = Child(partial(_limited, limits))

    def answers(
        self, work: Callable[[T], Answer], items: Sequence[T]
    ) -> Generator[Answer | Rejection, None, None]:
        """Run `work` on every item; both must be picklable.

        An item that two processes died of gets a Rejection: "decoder-timeout" or "decoder-crashed",
        by the second death; so does one that computed for too long, once. An item whose answer does
        not fit into memory gets "too-large". `work`
        must not raise: an exception ends its process. Raises ScanError when no process can be
        started.
        """
        done = sent = deaths = 0
        try:
            while done < len(items):
                try:
                    while sent < min(len(items), done + _AHEAD):
                        self._child.send(pickle.dumps((work, items[sent])))
                        sent += 1
                    found = _opened(self._child.receive())
                except (EOFError, OSError, NoAnswer) as error:
                    code = self._child.end()
                    deaths, sent = deaths + 1, done
                    if deaths < 2 and code != -signal.SIGPROF:
                        continue
                    found = self._cause(error, code)
                done, deaths = done + 1, 0
                sent = max(sent, done)
                yield found
        finally:
            if sent > done:  # the answers on their way would be taken for those of other items
                self.close()

    def close(self) -> None:
        """End the process now; the next item starts another one."""
        self._child.kill()
        self._child.end()

    def _cause(self, error: Exception, code: int | None) -> Rejection:
        if isinstance(error, NoAnswer):
            return Rejection("decoder-crashed", "what its process answered is no answer, twice")
        seconds = self.limits.max_seconds
        if code == -signal.SIGPROF:
            return Rejection(
                "decoder-timeout", f"computed for the {seconds:g} seconds of the limit"
            )
        if code == -signal.SIGALRM:
            waited = f"not ready after {_WAITING * seconds:g} seconds, twice"
            return Rejection("decoder-timeout", f"{waited}; the limit is {seconds:g} of computing")
        how = "its pipe closed" if code is None else ended(code)
        return Rejection("decoder-crashed", f"its process died twice: {how}")


def _opened(data: bytes) -> Answer | Rejection:
    answer = Answer.unpack(data)
    if not isinstance(answer.records, dict) or _REJECTED not in answer.records:
        return answer
    try:
        return Rejection(*map(str, answer.records[_REJECTED]))
    except (TypeError, ValueError) as error:
        raise NoAnswer(str(error)) from error


def _limited(limits: Limits) -> Work:
    """Set the limits of this process, and return what answers items."""
    for each in _ENDLESS:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDLESS)
    _limit_memory(limits.max_memory)
    return partial(_answer, limits)


def _answer(limits: Limits, message: bytes) -> bytes:
    """Return an item's answer, packed."""
    try:
        work, item = pickle.loads(message)  # noqa: S301 - of the parent
        _set_timers(limits.max_seconds)
        try:
            with _quiet():
                answer: Answer = work(item)
        finally:
            _set_timers(0)
        return answer.pack()
    except MemoryError:
        return Answer({_REJECTED: ["too-large", "not enough memory"]}).pack()


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing that a decoder prints, as libtiff does, reach the terminal or a log."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _set_timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _WAITING * seconds)


def _limit_memory(more: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    lowest = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
