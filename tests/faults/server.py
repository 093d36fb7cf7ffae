"""A process that imports everything once, and then forks a child for each trial of a job.

    LD_PRELOAD=shim.so python server.py MODULE ...     JSON lines in, JSON lines out

A request names a function as "module:function", the folder to work in, a time limit and,
where one is wanted, a fault, or a file for a record of the calls. The child makes that folder its
working directory, arms the shim on it and calls the function; what came of it goes through a pipe
to the parent, which answers.
Nothing that starts threads may run in the parent: a child of such a process can hang.
"""

import ctypes
import gc
import importlib
import json
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = 512  # bytes of a report's text, as in shim.c


class Report(ctypes.Structure):
    """What the shim leaves in memory that outlives the child."""

    _fields_ = (("calls", ctypes.c_long), ("struck", ctypes.c_char * TEXT))


def serve(modules: list[str]) -> None:
    """Import `modules`, then answer each request on the standard input with one line."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a job prints is no reply
    shim = ctypes.CDLL(None)  # the preloaded library is among the global symbols
    report = Report.from_buffer(mmap.mmap(-1, ctypes.sizeof(Report)))
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # so that a child does not copy all of this memory when it collects garbage
    for line in sys.stdin:
        reply = run(json.loads(line), shim, report)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def run(request: dict[str, Any], shim: ctypes.CDLL, report: Report) -> dict[str, Any]:
    """Run one trial in a child, and say how it ended; a child that takes too long is killed."""
    report.calls, report.struck = 0, b""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _trial(request, shim, report, writing)
    os.close(writing)
    text = _read_all(reading, time.monotonic() + request["seconds"])
    if text is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    outcome = {"ended": "hung"} if text is None else _ending(text, status)
    struck = report.struck.decode("utf-8", "backslashreplace")
    return outcome | {"calls": report.calls, "struck": struck}


def _trial(request: dict[str, Any], shim: ctypes.CDLL, report: Report, writing: int) -> None:
    """Be the child: never returns, and leaves what would be flushed at an exit unflushed."""
    try:
        os.chdir(request["folder"])
        module, _, name = request["function"].partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        arguments = request["arguments"]
        root = ctypes.c_char_p(os.fsencode(Path.cwd()))
        if record := request["record"]:
            shim.shim_record(root, os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        if fault := request["fault"]:
            numbers = (fault["kinds"], fault["action"], fault["error"])
            shim.shim_arm(root, *numbers, ctypes.c_long(fault["n"]), ctypes.byref(report))
        outcome = _called(function, arguments)
        shim.shim_disarm()
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(outcome, pipe)
    except BaseException:  # a fault of this harness, which the parent sees by the exit code
        shim.shim_disarm()
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _called(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ended": "returned", "value": function(**arguments)}
    except BaseException as error:
        return {"ended": "raised", "error": describe(error)}


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception's classes, most special first, its text, and where it came from."""
    classes = [kind.__name__ for kind in type(error).__mro__]
    trace = "".join(traceback.format_exception(error)[-4:])
    return {"classes": classes, "text": str(error)[:500], "trace": trace[-3000:]}


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Read to the end of a pipe, or return None when that is not there by the deadline."""
    parts = []
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
    return None


def _ending(text: bytes, status: int) -> dict[str, Any]:
    """Say how a child ended: "killed", "crashed" (another signal or exit), or what it wrote."""
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        return {"ended": "killed" if signum == signal.SIGKILL else "crashed", "signal": signum}
    if os.WEXITSTATUS(status) != 0:
        return {"ended": "crashed", "exit": os.WEXITSTATUS(status)}
    outcome: dict[str, Any] = json.loads(text)
    return outcome


if __name__ == "__main__":
    serve(sys.argv[1:])
