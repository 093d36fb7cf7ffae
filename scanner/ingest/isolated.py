"""Runs a function over items in a process that may hang, crash or run out of memory.

    items -> Isolated.answers -> an Answer or a Rejection each, in their order

The item that the process died of is tried once more in a fresh process, since the first may have
died by bad luck. One that computed for as long as it may is not: its time does not depend on what
else the machine does. What was answered before it is kept; the items after it go on in the fresh
process.

Where the size of an item is known, it may first compute for 0.2 seconds, and 0.5 for each MiB,
and then again for the whole limit. After one that took it in vain, the next gets a tenth of it,
and where that was in vain too, no other gets a second chance from this process, until one ends in
time: a thousand files that never end cost a run minutes.

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
from contextlib import contextmanager, suppress
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
_SECONDS, _MEBIBYTES_A_SECOND = 0.2, 2.0  # that an item may compute at first
_CHANCES = 1.0, 0.1, 0.0  # of the whole limit: a second chance, after one in vain, after two
_REJECTED = "rejected"  # in the records of an answer: a reason and its detail


@cache
def isolated(limits: Limits) -> "Isolated":
    """Return the process of this one that items are given to under these limits."""
    return Isolated(limits)


class _Allowance:
    """For how many seconds an item may compute: at first, and by a second chance."""

    def __init__(self, whole: float) -> None:
        self._whole, self._in_vain = whole, 0

    def at_first(self, size: int) -> float:
        """Return the seconds of an item of so many bytes."""
        return min(self._whole, _SECONDS + size / _MEBIBYTES_A_SECOND / (1 << 20))

    def more(self, allowed: float, again: bool) -> float:
        """Return what an item gets that took what it was allowed, once or again; 0: no more."""
        if again:
            self._in_vain = min(self._in_vain + 1, len(_CHANCES) - 1)
            return 0.0
        chance = _CHANCES[self._in_vain] * self._whole
        return chance if chance > allowed else 0.0

    def in_time(self, again: bool) -> None:
        """Note that an item ended in time: where it needed its second chance, others may, too."""
        if again:
            self._in_vain = 0

    def told(self, allowed: float) -> str:
        """Tell of an item that took too long."""
        if allowed == self._whole:
            return f"computed for the {allowed:g} seconds of the limit"
        return (
            f"computed for {allowed:.3g} seconds, and files before it in vain for the "
            f"{self._whole:g} of the limit"
        )


class Isolated:
    """A process under limits, started when it is needed and replaced when it dies."""

    def __init__(self, limits: Limits) -> None:
        """Start nothing yet."""
        self.limits = limits
        self._allowance = _Allowance(limits.max_seconds)
        self._child = Child(partial(_limited, limits))

    def answers(
        self, work: Callable[[T], Answer], items: Sequence[T], sizes: Sequence[int] = ()
    ) -> Generator[Answer | Rejection, None, None]:
        """Run `work` on every item, of `sizes` in bytes where they are known; both are picklable.

        An item that two processes died of gets a Rejection: "decoder-timeout" or "decoder-crashed",
        by the second death; so does one that computed for too long, once. An item whose answer does
        not fit into memory gets "too-large". `work`
        must not raise: an exception ends its process. Raises ScanError when no process can be
        started.
        """
        done, sent, deaths, again = 0, 0, 0, False
        allowed = [*map(self._allowance.at_first, sizes)] or [self.limits.max_seconds] * len(items)
        try:
            while done < len(items):
                try:
                    with suppress(ConnectionError):  # it died, and its answers are still to be read
                        while sent < min(len(items), done + _AHEAD):
                            self._child.send(pickle.dumps((work, items[sent], allowed[sent])))
                            sent += 1
                    found = _opened(self._child.receive())
                    self._allowance.in_time(again)
                except (EOFError, OSError, NoAnswer) as error:
                    code, sent = self._child.end(), done
                    if code == -signal.SIGPROF:
                        more = self._allowance.more(allowed[done], again)
                        if more:
                            allowed[done], again = more, True
                            continue
                    elif not deaths:
                        deaths = 1
                        continue
                    found = self._cause(error, code, allowed[done])
                done, deaths, again = done + 1, 0, False
                sent = max(sent, done)
                yield found
        finally:
            if sent > done:  # the answers on their way would be taken for those of other items
                self.close()

    def close(self) -> None:
        """End the process now; the next item starts another one."""
        self._child.kill()
        self._child.end()

    def _cause(self, error: Exception, code: int | None, allowed: float) -> Rejection:
        if isinstance(error, NoAnswer):
            return Rejection("decoder-crashed", "what its process answered is no answer, twice")
        seconds = self.limits.max_seconds
        if code == -signal.SIGPROF:
            return Rejection("decoder-timeout", self._allowance.told(allowed))
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
        work, item, seconds = pickle.loads(message)  # noqa: S301 - of the parent
        _set_timers(seconds, _WAITING * limits.max_seconds)
        try:
            with _quiet():
                answer: Answer = work(item)
        finally:
            _set_timers(0, 0)
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


def _set_timers(computing: float, waiting: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, computing)
    signal.setitimer(signal.ITIMER_REAL, waiting)


def _limit_memory(more: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + more
    lowest = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
