"""Blocks of work in this process and in real processes that die, hang and answer nonsense."""

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import all_ended, children
from worker_faults import act, fails, nonsense, number, slept, threads, visible

from deepssim_scan.errors import Damaged, ScanError
from deepssim_scan.execution import open_executor
from deepssim_scan.execution.answer import Answer, NoAnswer
from deepssim_scan.execution.local import cores
from deepssim_scan.ingest.config import RunContext

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(PLAIN, st.lists(st.text(), max_size=2), st.lists(st.integers(0, 3), max_size=3))
def test_an_answer_is_the_same_once_it_was_bytes(records, warnings, shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    given_ = Answer(records, {"a": array, "ü": array.astype(np.int8).T}, warnings)
    found = Answer.unpack(given_.pack())
    assert (found.records, found.warnings) == (records, warnings)
    assert found.arrays.keys() == {"a", "ü"}
    np.testing.assert_array_equal(found.arrays["a"], array)
    np.testing.assert_array_equal(found.arrays["ü"], array.T)
    assert found.arrays["ü"].dtype == np.int8


def test_names_of_any_bytes_are_kept():
    name = os.fsdecode(b"caf\xe9\xff")
    assert Answer.unpack(Answer([name]).pack()).records == [name]


@given(st.binary(max_size=64), st.integers(0, 200))
def test_row_49_bytes_that_are_no_answer_are_told(data, cut):
    whole = Answer(["a"], {"a": np.arange(3)}).pack()
    for bad in (data, whole[:cut] if cut < len(whole) else whole + b"x"):
        with pytest.raises(NoAnswer):
            Answer.unpack(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_come_in_the_order_of_the_tasks(workers):
    with closing(open_executor(workers)) as executor:
        for _ in range(2):
            delays = [0.2, 0.0, 0.1, 0.0, 0.0]
            assert len([*executor.map(slept, delays)]) == 5
            assert [a.records for a in executor.map(number, iter(range(20)))] == [*range(20)]
    assert all_ended()


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_block_are_those_of_the_caller(workers):
    with closing(open_executor(workers)) as executor:
        with pytest.raises(Damaged, match="a file is damaged"):
            [*executor.map(fails, ["a", "damaged"])]
        with pytest.raises((KeyError, RuntimeError), match="a bug"):
            [*executor.map(fails, ["bug"])]
        assert [a.records for a in executor.map(fails, ["a"])] == ["a"]


@pytest.mark.parametrize("workers", [0, 1])
def test_torch_has_one_thread_where_a_block_runs(workers):
    before = torch.get_num_threads()
    with closing(open_executor(workers)) as executor:
        assert next(executor.map(threads, [None])).records == 1
    assert torch.get_num_threads() == before


def test_more_processes_are_used_when_more_are_asked_for():
    with closing(open_executor(2)) as executor:
        pids = {answer.records for answer in executor.map(slept, [0.3] * 8)}
        again = {answer.records for answer in executor.map(slept, [0.3] * 8)}
    assert len(pids) == 2
    assert pids == again  # they are started once


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [(None, {"0", "1"}), ("3,5", {"3", "5"}), ("GPU-a,GPU-b", {"GPU-a", "GPU-b"})],
)
def test_each_process_sees_one_gpu_alone(seen, wanted, monkeypatch):
    if seen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with closing(open_executor(3, gpus=2)) as executor:
        found = {tuple(answer.records) for answer in executor.map(visible, [0.2] * 9)}
    assert {gpu for _, gpu in found} == wanted
    assert len({pid for pid, _ in found}) == len(found) == 3


def tries(folder):
    return Counter((folder / "log").read_text().split())


def test_row_37_a_process_that_dies_costs_its_block_which_runs_again(tmp_path):
    items = ["a", "unlucky-1", "b", "unlucky-2", "unlucky-3", "c"]
    with closing(open_executor(2)) as executor:
        found = [answer.records[0] for answer in executor.map(partial(act, tmp_path), items)]
    assert found == items
    assert tries(tmp_path) == {item: 1 + item.startswith("unlucky") for item in items}


@pytest.mark.parametrize(("item", "how"), [("exit-1", "exit code 3"), ("segfault-1", "Segm")])
def test_a_block_that_two_processes_died_of_is_an_error(tmp_path, item, how):
    with closing(open_executor(1)) as executor:
        with pytest.raises(ScanError, match=rf"failed twice .*{how}.*fewer --workers"):
            [*executor.map(partial(act, tmp_path), [item])]
        assert next(executor.map(number, [1])).records == 1
    assert tries(tmp_path) == {item: 2}


def test_row_49_a_worker_that_answers_nonsense_twice_is_an_error():
    with closing(open_executor(1)) as executor, pytest.raises(ScanError, match="are no answer"):
        [*executor.map(nonsense, ["bad"])]


def test_work_in_flight_is_bounded():
    taken = []
    tasks = (taken.append(value) or value for value in range(1000))
    with closing(open_executor(1)) as executor:
        answers = executor.map(number, tasks)
        assert next(answers).records == 0
        assert len(taken) == 2 * 1 + 2
        assert [answer.records for answer in islice(answers, 10)] == [*range(1, 11)]
        assert len(taken) == 2 * 1 + 2 + 10
        answers.close()


def test_what_is_given_up_is_not_begun(tmp_path):
    items = ["a", *["slow-1"] * 5]
    with closing(open_executor(1)) as executor:
        answers = executor.map(partial(act, tmp_path), [*items, "never-1"])
        assert next(answers).records[0] == "a"
        answers.close()
    assert all_ended()
    assert tries(tmp_path).keys() <= {"a", "slow-1"}


def test_closing_ends_what_hangs_and_what_waits(tmp_path):
    items = ["a", *["sleep"] * 5]
    executor = open_executor(2)
    answers = executor.map(partial(act, tmp_path), items)
    assert next(answers).records[0] == "a"
    while tries(tmp_path)["sleep"] < 2:
        time.sleep(0.01)
    started = children()
    assert len(started) == 2
    executor.close()
    assert all_ended(started)
    assert tries(tmp_path)["sleep"] == 2


def test_one_process_a_core_by_affinity():
    code = "from deepssim_scan.execution.local import cores; print(cores())"
    for core in sorted(os.sched_getaffinity(0))[:2]:
        only = ["taskset", "-c", str(core), sys.executable, "-c", code]
        assert subprocess.run(only, capture_output=True, check=True).stdout == b"1\n"
    assert 1 <= cores() <= os.cpu_count()


class Told:
    """Keeps warnings."""

    def __init__(self):
        self.warnings = []

    def __call__(self, *_):
        pass

    def warn(self, text):
        self.warnings.append(text)


def warned(value):
    return Answer(value, {}, ["beware", f"of {value % 2}"])


def test_warnings_of_blocks_are_told_once():
    told = Told()
    run = RunContext(workers=0, progress=told)
    assert [answer.records for answer in run.map(warned, range(4))] == [*range(4)]
    assert told.warnings == ["beware", "of 0", "of 1"]


def test_a_run_keeps_its_workers_while_it_is_open():
    with RunContext(workers=1).opened() as run, run.opened() as same:
        pids = [next(each.map(slept, [0])).records for each in (run, run, same)]
        assert len({*pids}) == 1
    assert all_ended()


PROGRAM = """
import sys, time
from functools import partial
from pathlib import Path
from deepssim_scan.execution import open_executor
from worker_faults import act

folder, *items = sys.argv[1:]
executor = open_executor(2)
answers = executor.map(partial(act, Path(folder)), items)
for answer in answers:
    print(answer.records[1], flush=True)
    if "leave" in answer.records[0]:
        sys.stdin.readline()
        break
    if "idle" in answer.records[0]:
        time.sleep(10_000)
"""


HANGING = """
import sys
from functools import partial
from pathlib import Path
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.isolated import Isolated
from worker_faults import act

next(Isolated(Limits(max_seconds=2)).answers(partial(act, Path(sys.argv[1])), ["hang-1"]))
"""


def program(folder, items, text=PROGRAM):
    """Return the arguments of a script, without a main guard, that acts on items."""
    (folder / "program.py").write_text(text)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, folder / "program.py", folder, *items],
        "env": os.environ | {"PYTHONPATH": paths.strip(os.pathsep)},
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
    }


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    """Idle ones end when the pipe closes, busy ones when they want to answer."""
    with subprocess.Popen(**program(tmp_path, ["idle", "b"])) as parent:
        parent.stdout.readline()
        while not tries(tmp_path)["b"]:
            time.sleep(0.01)
        while len(started := children()) < 3:  # the program, and its two workers
            time.sleep(0.01)
        parent.kill()
    assert all_ended(started)


def test_a_program_that_forgets_to_close_ends_all_the_same(tmp_path):
    items = ["leave", *["sleep"] * 5]
    with subprocess.Popen(**program(tmp_path, items)) as parent:
        parent.stdout.readline()
        while tries(tmp_path)["sleep"] < 2:  # each process has one
            time.sleep(0.01)
        started = children(parent.pid)
        parent.stdin.close()
        assert parent.wait(60) == 0
    assert len(started) == 2
    assert all_ended(started)


def test_a_decoder_that_hangs_ends_after_its_time_though_its_parent_was_killed(tmp_path):
    with subprocess.Popen(**program(tmp_path, [], HANGING)) as parent:
        while not (tmp_path / "log").exists() or not tries(tmp_path)["hang-1"]:
            time.sleep(0.01)
        started = children(parent.pid)
        parent.kill()
    assert len(started) == 1
    assert all_ended(started)


def test_modules_of_the_current_folder_are_not_imported(tmp_path, monkeypatch):
    for name in ("pickle", "safetensors", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with closing(open_executor(1)) as executor:
        assert next(executor.map(number, [1])).records == 1
