"""Processes that are forked of one which has loaded what they need."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from processes import all_ended, children
from worker_faults import modules, surroundings

from deepssim_scan.errors import ScanError
from deepssim_scan.execution import child
from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.child import Child
from deepssim_scan.execution.nursery import Nursery

NO_FORK = """
import os

forks = [os.fork]

def refused():
    if len(forks) == 2:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    forks.append(None)
    return forks[0]()

os.fork = refused
"""


@pytest.fixture
def nursery(monkeypatch):
    """A nursery of a test's own, which children are forked of."""
    with closing(Nursery()) as made:
        monkeypatch.setattr(child, "NURSERY", made)
        yield made


def asked(process, message=b""):
    """Send a message to a child and wait for what it answers."""
    process.send(message)
    return Answer.unpack(process.receive()).records


def test_a_process_has_what_the_nursery_has_loaded_and_no_more(nursery):
    nursery.load(["tabnanny"])
    assert {"tabnanny", "torch"} & {*asked(Child(modules))} == {"tabnanny"}


def test_a_process_goes_on_where_its_caller_is(nursery, tmp_path, monkeypatch, capfd):
    asked(Child(surroundings))
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSSIM_TEST", "ü")
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere"])
    folder, value, path, threads = asked(Child(surroundings))
    assert (folder, value, path, threads) == (str(tmp_path), "ü", "/nowhere", "1")
    assert capfd.readouterr() == ("", "printed\n")


def test_a_nursery_that_cannot_fork_is_an_error_and_what_was_forked_lives(
    nursery, tmp_path, monkeypatch
):
    (tmp_path / "no_fork.py").write_text(NO_FORK)
    monkeypatch.syspath_prepend(tmp_path)
    nursery.load(["no_fork"])
    first = Child(modules)
    assert asked(first)
    with pytest.raises(ScanError, match=r"cannot be started .*temporarily unavailable"):
        Child(modules).start()
    assert asked(first)
    assert first.end() == 0


def test_what_was_forked_of_a_nursery_that_died_works_on(nursery):
    others = {*children()}  # that an earlier test has left to the garbage collector
    first, second = Child(modules), Child(modules)
    assert asked(first)
    started = [each for each in children() if each not in others]
    nursery.kill()
    assert asked(first)
    assert asked(second)  # of another nursery
    assert first.end() is None
    assert second.end() == 0
    assert all_ended(started)


def test_a_module_that_does_not_load_is_an_error(nursery):
    nursery.load(["no_such_module"])
    with pytest.raises(ScanError, match="cannot be started"):
        Child(modules).start()


PROGRAM = """
import sys, time
from functools import partial
from pathlib import Path
from deepssim_scan.execution.child import Child
from worker_faults import nested

process = Child(partial(nested, Path(sys.argv[1])))
process.start()
process.send(b"sleep")
time.sleep(10_000)
"""


def test_nothing_outlives_a_caller_that_is_killed_however_deep_it_was_forked(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.strip(os.pathsep)}
    with subprocess.Popen([sys.executable, program, tmp_path], env=environment) as parent:
        while not (tmp_path / "log").exists():
            assert parent.poll() is None
            time.sleep(0.01)
        started = psutil.Process(parent.pid).children(recursive=True)
        assert len(started) == 3  # the nursery, the process, and that of the process
        parent.kill()
    assert all_ended(started, 5)


def test_an_interrupted_request_does_not_leave_its_reply_to_the_next(
    nursery, tmp_path, monkeypatch
):
    (tmp_path / "slow_to_load.py").write_text("import time; time.sleep(1)")
    monkeypatch.syspath_prepend(tmp_path)
    started = Child(modules)
    assert asked(started)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        nursery.load(["slow_to_load"])
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            Child(modules).start()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert asked(Child(modules))
