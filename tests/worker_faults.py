"""What worker processes do in tests; apart, so that they start without pytest."""

import os
import re
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from deepssim_scan.errors import Damaged
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.child import Child
from deepssim_scan.ingest.decode import decode


def act(folder, item):
    """Do what the item's name says, having noted that it was tried; answer the name and pid."""
    with (folder / "log").open("a") as log:
        log.write(f"{item}\n")
    what, _, _ = item.partition("-")
    if what in ("unlucky", "slow") and not (folder / item).exists():
        (folder / item).touch()
        what = {"unlucky": "exit", "slow": "sleep"}[what]
    if what == "hang":  # within C code that holds the interpreter's lock
        re.match("(a+)+$", "a" * 60 + "b")
    elif what == "busy":
        _compute(0.5)
    elif what == "sleep":
        time.sleep(10_000)
    elif what == "exit":
        os._exit(3)
    elif what == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "raise":
        raise SystemExit(4)
    elif what == "eat":
        return Answer(None, {"eaten": np.ones(1 << 27)})
    elif what == "closed":  # the pipe is gone, the process goes on
        os.closerange(3, 100)
        time.sleep(10_000)
    elif what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    return Answer([item, os.getpid()])


def decode_and_act(folder, item):
    """Decode the file of this name, where there is one, and act."""
    if (folder / item).exists():
        list(decode((folder / item).read_bytes()))
    return act(folder, item)


def _compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def address_space(_):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return Answer([pages * resource.getpagesize(), resource.getrlimit(resource.RLIMIT_AS)[0]])


def filled(megabytes):
    return Answer(None, {"filled": np.ones(megabytes << 17)})


def loud(item):
    os.write(2, b"TIFFReadDirectory: Warning")
    return Answer(item)


def slept(seconds):
    time.sleep(seconds)
    return Answer(os.getpid())


def number(value):
    return Answer(value)


def fails(value):
    """Raise what the value says."""
    if value == "damaged":
        raise Damaged("a file is damaged")
    if value == "bug":
        raise KeyError("a bug")
    return Answer(value)


class Nonsense:
    """Is packed as bytes that are no answer."""

    def pack(self):
        return b"nonsense"


def nonsense(item):
    return Nonsense() if item == "bad" else Answer(item)


def rejected_nonsense(_):
    return Answer({"rejected": ["no such reason", ""]})


def threads(_):
    import torch

    return Answer(torch.get_num_threads())


def visible(seconds):
    time.sleep(seconds)
    return Answer([os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]])


class DeadOnArrival:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


class DeadlyRule:
    """Ends the process that standardises by it."""

    @property
    def size(self):
        os._exit(1)


def modules():
    """Answer which modules are loaded: what a `Child` is made of."""
    return lambda _: Answer([*sys.modules]).pack()


def surroundings():
    """Answer where the process is and what it was given, and print."""
    print("printed", flush=True)
    found = [str(Path.cwd()), os.environ.get("DEEPSSIM_TEST"), sys.path[-1]]
    return lambda _: Answer([*found, os.environ["OMP_NUM_THREADS"]]).pack()


def nested(folder):
    """Start a process that sleeps once it is told to, and pass on what it is told."""
    inner = Child(partial(sleeper, folder))

    def work(message):
        inner.send(message)
        return inner.receive()

    return work


def sleeper(folder):
    return lambda message: act(folder, message.decode()).pack()
