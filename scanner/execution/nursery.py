"""A process of which others are forked, so that what all of them need is loaded once.

    NURSERY.fork(pipe) -> Forked: a process that runs `child.main` on its end of the pipe

Torch takes an interpreter seconds of a core to load. A process that runs one thread can be forked
safely. This one cannot promise that of itself, and the nursery can. It is started when it is first
needed, and ends with this process. What is forked of it can fork of it again. It is the parent of
all of them, and ends those whose caller is gone.
"""

import atexit
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from threading import Lock
from typing import NoReturn, cast

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""The environment in which libraries of numbers start no threads."""

_PROGRAM = "import sys; from deepssim_scan.execution.nursery import main; main(int(sys.argv[1]))"
_LOAD, _FORK, _END = "load", "fork", "end"
_UNKNOWN = b"unknown"
_PATIENCE = 1  # seconds that a nursery has to end, once its pipe is closed
_STEP = 0.002  # seconds between two looks at whether a process has ended
_LARGEST = 16  # bytes of a reply
_Callers = dict[Connection, set[int]]


class Nursery:
    """A process's end of the pipe to a nursery; its threads may share it."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = Lock()
        self._has_answered = False

    def join(self, pipe: Connection) -> None:
        """Use the nursery at the other end of a pipe."""
        self._pipe = pipe

    def load(self, modules: Iterable[str]) -> None:
        """Have modules loaded before the next fork, and do not wait for it.

        Raises OSError when no process can be started.
        """
        self._ask(_LOAD, tuple(modules))

    def fork(self, descriptor: int) -> "Forked":
        """Return a new process, which is given a descriptor, and prints where this one does.

        Raises OSError or EOFError when none can be started.
        """
        worked = self._has_answered
        try:
            pid = int(self._ask(_FORK, None, descriptor, 2))
        except (EOFError, ConnectionError):
            if not worked:
                raise
            pid = int(self._ask(_FORK, None, descriptor, 2))  # it had died, and there is a new one
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return Forked(pid, self)

    def code(self, pid: int) -> int | None:
        """Return the exit code of a process that was forked, None while it lives.

        Raises OSError or EOFError when the nursery that it was forked of is gone.
        """
        reply = self._ask(_END, pid)
        if reply == _UNKNOWN:
            raise EOFError("forked of another nursery")
        return int(reply) if reply else None

    def kill(self) -> None:
        """End the nursery: who waits for it gets an EOFError, and the next one starts another."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the nursery and what was forked of it, and wait for it, so that its time counts."""
        with self._asking:
            if self._pipe is not None:
                self._pipe.close()
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)
                self._process.kill()
                self._process.wait()
            self._pipe = self._process = None

    def _ask(self, what: str, value: object, *descriptors: int) -> bytes:
        """Ask for something, of a new nursery where there is none; return the reply."""
        with self._asking:
            try:
                pipe = self._sent(pickle.dumps((what, value)))
                if descriptors:
                    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
                        socket.send_fds(end, [b"\0"], descriptors)
                if what == _LOAD:
                    return b""
                reply = pipe.recv_bytes(_LARGEST)
                self._has_answered = True
                return reply
            except BaseException:  # a reply that is still to come is not that of the next request
                if self._pipe is not None:
                    self._pipe.close()
                self._pipe = None
                raise

    def _sent(self, message: bytes) -> Connection:
        if self._pipe is not None:
            with suppress(OSError):  # it has died meanwhile
                self._pipe.send_bytes(message)
                return self._pipe
            self._pipe.close()
        self._pipe = self._started()
        self._pipe.send_bytes(message)
        return self._pipe

    def _started(self) -> Connection:
        self._has_answered = False
        if self._process is not None:
            self._process.wait()
        ours, theirs = socket.socketpair()
        pipe = Connection(ours.detach())
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._process = subprocess.Popen(
                # -P: a module of that name in the current folder is not imported.
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # of what a library prints; ours may be read by a program
                pass_fds=[theirs.fileno()],
                env=os.environ | path | ONE_THREAD,
            )
        return pipe


NURSERY = Nursery()
"""That of this process."""
atexit.register(NURSERY.close)


class Forked:
    """A process that was forked of a nursery."""

    def __init__(self, pid: int, nursery: Nursery) -> None:
        """Take over a process that the nursery has started."""
        self._pid, self._nursery = pid, nursery

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int | None:
        """Wait until it has ended, and kill it after so many seconds; return its exit code.

        The code is negative for a signal, None where the nursery has died, so that nobody knows.
        """
        patience = time.monotonic() + seconds
        with suppress(EOFError, OSError):
            while (code := self._nursery.code(self._pid)) is None:
                if time.monotonic() > patience:
                    self.kill()
                time.sleep(_STEP)
            return code
        return None


def main(descriptor: int) -> None:
    """Fork processes until nobody is left who may ask for one: the main function of a nursery."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent gets it too, and ends
    callers: _Callers = {Connection(descriptor): set()}
    while callers:
        for caller in cast("list[Connection]", wait([*callers])):
            try:
                _serve(caller, callers)
            except (EOFError, OSError):
                _end(callers.pop(caller))
                caller.close()


def _serve(caller: Connection, callers: _Callers) -> None:
    """Do what a caller asks for."""
    what, value = pickle.loads(caller.recv_bytes())  # noqa: S301 - of one of its own
    if what == _LOAD:
        for name in value:
            import_module(name)
        gc.freeze()  # or the memory of what is forked would be copied when it collects garbage
    elif what == _FORK:
        caller.send_bytes(str(_fork(caller, callers)).encode())
    elif value in callers[caller]:
        pid, status = os.waitpid(value, os.WNOHANG)
        callers[caller].discard(pid)
        caller.send_bytes(str(os.waitstatus_to_exitcode(status)).encode() if pid else b"")
    else:
        caller.send_bytes(_UNKNOWN)


def _fork(caller: Connection, callers: _Callers) -> int:
    """Fork a process, which becomes a caller, too; return its number, or an error's below 0."""
    with socket.socket(fileno=os.dup(caller.fileno())) as end:
        _, descriptors, _, _ = socket.recv_fds(end, 1, 2)
    try:
        if len(descriptors) != 2:
            raise EOFError("the caller is gone")
        ours, theirs = Pipe()
        with theirs:
            pid = os.fork()
            if pid == 0:
                _become(descriptors[0], descriptors[1], theirs, [ours, *callers])
        callers[caller].add(pid)
        callers[ours] = set()
    except OSError as error:
        return -(error.errno or 1)
    finally:
        for each in descriptors:
            os.close(each)
    return pid


def _become(pipe: int, errors: int, nursery: Connection, others: Sequence[Connection]) -> NoReturn:
    """Be the process that was forked, and nothing else any more."""
    code = 1
    try:
        for each in others:
            each.close()
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        os.close(errors)
        NURSERY.join(nursery)
        from deepssim_scan.execution import child

        child.main(pipe)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _end(pids: Iterable[int]) -> None:
    """Kill processes, those of a caller who is gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
