"""What worker processes do in tests; apart, so that they start without pytest."""

import os
import re
import resource
import signal
import threading
import time
from pathlib import Path


def act(folder, item):
    """Do what the item's name says, having noted that it was tried; return the name and pid."""
    with (folder / "log").open("a") as log:
        log.write(f"{item}\n")
    what, _, _ = item.partition("-")
    if what == "unlucky" and not (folder / item).exists():
        (folder / item).touch()
        what = "exit"
    if what == "slow" and not (folder / item).exists():
        (folder / item).touch()
        what = "hang"
    if what == "hang":  # within C code that holds the interpreter's lock
        re.match("(a+)+$", "a" * 60 + "b")
    elif what == "sleep":
        time.sleep(10_000)
    elif what == "exit":
        os._exit(3)
    elif what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "raise":
        raise SystemExit(4)
    elif what == "eat":
        return bytes(1 << 30)
    elif what == "closed":  # the pipe is gone, the process goes on
        os.closerange(3, 100)
        time.sleep(10_000)
    elif what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    return item, os.getpid()


def address_space(_):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize(), resource.getrlimit(resource.RLIMIT_AS)[0]


def pid(_):
    return os.getpid()


def nap(_):
    time.sleep(0.3)
    return os.getpid()


def slowly(seconds, function):
    """Return the function, made to wait before it runs in another thread than the main one."""

    def slow(*arguments):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(seconds)
        return function(*arguments)

    return slow


class DeadOnArrival:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


class DeadlyRule:
    """Ends the process that standardises by it."""

    @property
    def size(self):
        os._exit(1)
