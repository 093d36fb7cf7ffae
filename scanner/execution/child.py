"""A process beside this one that answers messages.

    Child(make): make() -> work, in the process; message (bytes) -> work(message): bytes

`make` is pickled, and nothing that the process sends is unpickled. The process is forked of the
nursery, and goes on in this one's folder, environment and module path. It ends when its pipe
closes, and the pipe closes when this process ends, however that happens.
"""

import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock

from deepssim_scan.errors import ScanError
from deepssim_scan.execution.nursery import NURSERY, ONE_THREAD, Forked

Work = Callable[[bytes], bytes]

LARGEST = 1 << 32
"""Bytes that an answer may have."""

_PATIENCE = 5  # seconds that a process has to end, once its pipe is closed


class Stopped(Exception):
    """A child was used after it was killed forever."""


class Child:
    """One process at a time, started when it is needed and again after `end`."""

    def __init__(self, make: Callable[[], Work]) -> None:
        """Start nothing yet; `make` will be called in the process, and returns what answers."""
        self._make = make
        self._process: Forked | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._changing = Lock()  # `kill` is called by another thread

    @property
    def started(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def send(self, message: bytes) -> None:
        """Send a message, to a new process where there is none.

        Raises what `start` does, and OSError when the process is gone.
        """
        self.start().send_bytes(message)

    def receive(self) -> bytes:
        """Wait for the next answer; raises EOFError or OSError when the process is gone."""
        if self._pipe is None:
            raise EOFError("no process was started")
        return self._pipe.recv_bytes(LARGEST)

    def kill(self, *, forever: bool = False) -> None:
        """End the process now: who waits for it gets an EOFError. `forever`: start no other."""
        with self._changing:
            self._stopped |= forever
            if self._process is not None:
                self._process.kill()

    def end(self) -> int | None:
        """Close the pipe, wait until the process has ended, and return its exit code.

        It is negative for a signal, None where there is no process.
        """
        with self._changing:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if process is None or pipe is None:
            return None
        pipe.close()
        return process.wait(_PATIENCE)

    def start(self) -> Connection:
        """Start the process unless there is one; return the pipe to it.

        Raises ScanError when none can be started, Stopped after `kill(forever=True)`.
        """
        return self._pipe or self._started()

    def _started(self) -> Connection:
        ours, theirs = socket.socketpair()
        pipe = Connection(ours.detach())
        try:
            with theirs:
                self._take(NURSERY.fork(theirs.fileno()), pipe)
            pipe.send_bytes(pickle.dumps((str(Path.cwd()), dict(os.environ), sys.path)))
            pipe.send_bytes(pickle.dumps(self._make))
            pipe.recv_bytes(0)
        except (EOFError, OSError) as error:
            code = self.end()
            pipe.close()
            raise ScanError(
                f"A worker process cannot be started ({error if code is None else ended(code)}). "
                "Look at what it printed, and at the limits of processes and memory."
            ) from error
        return pipe

    def _take(self, process: Forked, pipe: Connection) -> None:
        with self._changing:
            self._process, self._pipe = process, pipe
            if self._stopped:
                process.kill()
                raise Stopped


def ended(code: int) -> str:
    """Say how a process ended, by its exit code."""
    return f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def main(descriptor: int) -> None:
    """Answer messages until the pipe closes: the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller gets it too, and ends its children
    pipe = Connection(descriptor)
    with suppress(EOFError, ConnectionError):  # the caller closed the pipe, or is gone
        folder, environment, path = pickle.loads(pipe.recv_bytes())  # noqa: S301 - of the caller
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment | ONE_THREAD)
        sys.path[:] = filter(None, path)  # an empty one is the current folder
        work = pickle.loads(pipe.recv_bytes())()  # noqa: S301 - of the caller
        pipe.send_bytes(b"")
        while True:
            pipe.send_bytes(work(pipe.recv_bytes()))
