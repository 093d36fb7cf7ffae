"""Real processes that hang, crash, are killed and eat memory; what they do is told by the item."""

import os
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_faults import DeadOnArrival, act, address_space, nap, pid

from deepssim_scan.errors import InputError, ScanError
from deepssim_scan.ingest import workers as workers_module
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.rejection import Rejection
from deepssim_scan.ingest.workers import each

SHORT = Limits(max_seconds=1.0)
SMALL = Limits(max_memory=1 << 28)


def run(folder, chunks, workers=1, limits=SHORT):
    return list(each(partial(act, folder), iter(chunks), workers, limits))


def names(answers):
    """Return the names answered, and the reasons of what was rejected."""
    return [a.reason if isinstance(a, Rejection) else a[0] for a in answers]


def tries(folder):
    return Counter((folder / "log").read_text().split())


def test_row_28_and_37_a_death_costs_one_item_and_nothing_is_done_twice(tmp_path):
    first = ["a", "exit-1", "b", "unlucky-1", "c"]
    second = ["unlucky-2", "unlucky-3", "segfault-1", "exit-2", "interrupt-1"]
    answers = run(tmp_path, [first, second])
    crashed = {"exit-1", "segfault-1", "exit-2"}
    expected = ["decoder-crashed" if item in crashed else item for item in first + second]
    assert names(answers) == expected
    assert "exit code 3" in answers[1].detail
    assert "Segmentation fault" in answers[7].detail
    unlucky = {"unlucky-1", "unlucky-2", "unlucky-3"}
    assert tries(tmp_path) == {item: 1 + (item in crashed | unlucky) for item in first + second}
    assert not active_children()


def test_row_28_a_hang_in_c_code_is_ended_and_costs_one_item(tmp_path):
    items = ["a", "hang-1", "b", "slow-1", "c"]
    answers = run(tmp_path, [items])
    assert names(answers) == ["a", "decoder-timeout", "b", "slow-1", "c"]
    assert answers[1].detail == "over the limit of 1 seconds, twice"
    assert tries(tmp_path) == {"a": 1, "hang-1": 2, "b": 1, "slow-1": 2, "c": 1}


def test_the_time_limit_is_of_one_item_and_not_of_a_chunk(tmp_path):
    assert list(each(time.sleep, iter([[0.4] * 5]), 1, Limits(max_seconds=1.5))) == [None] * 5


def test_waiting_for_work_costs_nothing():
    def slow():
        yield from (["a"], ["b"])
        time.sleep(1.5)
        yield ["c"]

    pids = list(each(pid, slow(), 1, SHORT))
    assert len(pids) == 3
    assert len(set(pids)) == 1


def test_row_28_eating_memory_is_too_large_and_the_process_lives_on(tmp_path):
    answers = run(tmp_path, [["a", "eat-1", "b"]], limits=SMALL)
    assert names(answers) == ["a", "too-large", "b"]
    assert answers[0][1] == answers[2][1]  # one process


def test_memory_that_runs_out_while_the_answer_is_pickled_is_too_large():
    # 180 MiB fit into 256, and their pickled copy does not.
    answers = list(each(bytes, iter([[10, 180 << 20, 11]]), 1, SMALL))
    assert [answers[0], answers[1].reason, answers[2]] == [bytes(10), "too-large", bytes(11)]


def test_the_memory_limit_is_above_what_a_process_starts_with():
    answers = list(each(address_space, iter([[None]]), 1, SMALL))
    size, limit = answers[0]
    assert abs(size + SMALL.max_memory - limit) < 64 << 20


def test_a_process_that_closes_its_pipe_and_lives_on_is_ended(tmp_path, monkeypatch):
    real = workers_module.wait  # which would wait for 5 seconds
    monkeypatch.setattr(workers_module, "wait", lambda things, timeout: real(things, 0.1))
    assert names(run(tmp_path, [["closed-1", "a"]])) == ["decoder-crashed", "a"]
    assert not active_children()


def test_an_exception_ends_the_process_and_costs_its_item(tmp_path):
    answers = run(tmp_path, [["raise-1", "a"]])
    assert names(answers) == ["decoder-crashed", "a"]
    assert "exit code 4" in answers[0].detail


@settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(st.sampled_from("aaabcx"), max_size=4), max_size=4), st.integers(1, 3))
def test_any_deaths_in_any_chunks_leave_the_order_whole(tmp_path_factory, chunks, workers):
    folder = tmp_path_factory.mktemp("run")
    kinds = {"a": "plain", "b": "unlucky", "c": "exit", "x": "segfault"}
    numbered = [
        [f"{kinds[kind]}-{place}-{number}" for number, kind in enumerate(chunk)]
        for place, chunk in enumerate(chunks)
    ]
    flat = [item for chunk in numbered for item in chunk]
    deadly = ("exit", "segfault")
    expected = ["decoder-crashed" if item.startswith(deadly) else item for item in flat]
    assert names(run(folder, numbered, workers)) == expected
    twice = (*deadly, "unlucky")
    assert not flat or tries(folder) == {item: 1 + item.startswith(twice) for item in flat}


def test_more_processes_are_used_when_more_are_asked_for(tmp_path):
    answers = list(each(nap, iter([[n] for n in range(8)]), 2, SHORT))
    assert len(set(answers)) == 2


def test_work_in_flight_is_bounded():
    taken = []
    chunks = ((taken.append(number) or [number]) for number in range(1000))
    answers = each(str, chunks, 1, SHORT)
    assert next(answers) == "0"
    assert len(taken) == 2 * 1 + 2
    assert list(islice(answers, 10)) == [str(number) for number in range(1, 11)]
    assert len(taken) == 2 * 1 + 2 + 10
    answers.close()


def test_closing_ends_what_hangs_and_what_waits(tmp_path):
    items = ["a", *["sleep"] * 5]
    answers = each(partial(act, tmp_path), iter([[item] for item in items]), 2, Limits(1e6))
    assert next(answers)[0] == "a"
    while tries(tmp_path)["sleep"] < 2:
        time.sleep(0.01)
    assert len(active_children()) == 2
    answers.close()
    assert not active_children()
    assert tries(tmp_path)["sleep"] == 2


def test_closing_before_the_first_answer_and_never_starting(tmp_path):
    each(str, iter([["a"]]), 2, SHORT).close()
    assert not active_children()
    assert list(each(str, iter([]), 2, SHORT)) == []


def test_processes_that_cannot_start_are_an_error_and_not_a_rejection(monkeypatch):
    with pytest.raises(ScanError, match="die as they start"):
        list(each(DeadOnArrival(), iter(["ab", "cd"]), 2, SHORT))
    assert not active_children()

    def refuse(_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers_module._SPAWN.Process, "start", refuse)
    with pytest.raises(ScanError, match="die as they start"):
        list(each(str, iter(["ab"]), 1, SHORT))


def test_limits_check_themselves():
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="max_seconds"):
            Limits(max_seconds=seconds)
    with pytest.raises(InputError, match="max_memory"):
        Limits(max_memory=(1 << 28) - 1)


PARENT = """
import atexit, sys, time
from functools import partial
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from deepssim_scan.ingest.workers import each
from deepssim_scan.ingest.config.limits import Limits
from worker_faults import act, slowly

if __name__ == "__main__":
    folder, limit, *items = sys.argv[1:]
    if "slow" in items:
        SpawnProcess.join = slowly(2, SpawnProcess.join)
        connection.Pipe = slowly(0.5, connection.Pipe)
        atexit.register(time.sleep, 3)  # called after those of `each`
    work = partial(act, Path(folder))
    answers = each(work, iter([[item] for item in items]), 2, Limits(float(limit)))
    for answer in answers:
        print(answer[1], flush=True)
        if "leave" in answer[0]:
            break  # with the generator alive
        if "idle" in answer[0]:
            time.sleep(10_000)
"""


def parent_of(folder, limit, items):
    """Return the arguments of a process that runs `act` on the items, in two workers."""
    (folder / "parent.py").write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, folder / "parent.py", folder, str(limit), *items],
        "env": os.environ | {"PYTHONPATH": paths.strip(os.pathsep)},
        "stdout": subprocess.PIPE,
    }


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("limit", "items"), [(1e6, ["idle", "b"]), (2, ["a", "hang-1", "hang-2"])])
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path, limit, items):
    """Idle ones end when the pipe closes, those that hang when their time is over."""
    with subprocess.Popen(**parent_of(tmp_path, limit, items)) as parent:
        parent.stdout.readline()
        while not tries(tmp_path)[items[1]]:
            time.sleep(0.01)
        children = Path(f"/proc/{parent.pid}/task").glob("*/children")
        pids = {int(pid) for file in children for pid in file.read_text().split()}
        assert len(pids) >= 3  # two workers, and the tracker of multiprocessing
        assert all(alive(pid) for pid in pids)
        parent.kill()
    while any(alive(pid) for pid in pids):
        time.sleep(0.05)


@pytest.mark.parametrize("slow", [[], ["slow"]])
def test_a_program_that_forgets_to_close_ends_all_the_same(tmp_path, slow):
    """Also when its threads hold each other up as the interpreter ends."""
    items = ["leave", *["sleep"] * 5, *slow]
    run = subprocess.run(**parent_of(tmp_path, 1e6, items), check=True, timeout=60)
    assert not alive(int(run.stdout))
