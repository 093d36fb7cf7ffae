"""A process beside this one that answers messages.

    Child(make): make() -> work, in the process; message (bytes) -> work(message): bytes

`make` is pickled, and nothing that the process sends is unpickled. The process is an interpreter of
its own: one that is forked after torch or FAISS ran threads can hang. It ends when its pipe closes,
and the pipe closes when this process ends, however that happens.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Lock

from deepssim_scan.errors import ScanError

Work = Callable[[bytes], bytes]

LARGEST = 1 << 32
"""Bytes that an answer may have."""

_PATIENCE = 5  # seconds that a process has to end, once its pipe is closed
_PROGRAM = "import sys; from deepssim_scan.execution.child import main; main(int(sys.argv[1]))"


class Stopped(Exception):
    """A child was used after it was killed forever."""


class Child:
    """One process at a time, started when it is needed and again after `end`."""

    def __init__(
        self, make: Callable[[], Work], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start nothing yet; `make` will be called in the process, and returns what answers."""
        self._make, self._environment = make, dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._changing = Lock()  # `kill` is called by another thread

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
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_PATIENCE)
        process.kill()
        return process.wait()

    def start(self) -> Connection:
        """Start the process unless there is one; return the pipe to it.

        Raises ScanError when none can be started, Stopped after `kill(forever=True)`.
        """
        return self._pipe or self._started()

    def _started(self) -> Connection:
        ours, theirs = socket.socketpair()
        pipe = Connection(ours.detach())
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            with self._changing, theirs:
                if self._stopped:
                    raise Stopped
                self._process = subprocess.Popen(
                    # -P: a module of that name in the current folder is not imported.
                    [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # of what a library prints; ours may be read by a program
                    pass_fds=[theirs.fileno()],
                    env=os.environ | path | self._environment,
                )
                self._pipe = pipe
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


def ended(code: int) -> str:
    """Say how a process ended, by its exit code."""
    return f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def main(descriptor: int) -> None:
    """Answer messages until the pipe closes: the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its children
    pipe = Connection(descriptor)
    with suppress(EOFError, ConnectionError):  # the parent closed the pipe, or is gone
        work = pickle.loads(pipe.recv_bytes())()  # noqa: S301 - of the parent
        pipe.send_bytes(b"")
        while True:
            pipe.send_bytes(work(pipe.recv_bytes()))
