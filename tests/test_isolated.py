"""Real processes that hang, crash, are killed and eat memory; what they do is told by the item."""

import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dicom_bytes import dicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_bytes import nifti
from processes import all_ended, children
from worker_faults import (
    DeadOnArrival,
    act,
    address_space,
    decode_and_act,
    filled,
    nonsense,
    number,
    rejected_nonsense,
    slept,
)

from deepssim_scan.errors import InputError, ScanError
from deepssim_scan.execution import child, nursery
from deepssim_scan.execution.child import Child
from deepssim_scan.ingest import isolated
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.isolated import Isolated
from deepssim_scan.ingest.rejection import Rejection

SHORT = Limits(max_seconds=1.0)
SMALL = Limits(max_memory=1 << 28)
HUNG = "computed for the 1 seconds of the limit"


def answers_of(work, items, limits=SHORT):
    with closing(Isolated(limits)) as process:
        return list(process.answers(work, items))


def run(folder, items, limits=SHORT):
    return answers_of(partial(act, folder), items, limits)


def names(answers):
    """Return the names answered, and the reasons of what was rejected."""
    return [a.reason if isinstance(a, Rejection) else a.records[0] for a in answers]


def tries(folder):
    return Counter((folder / "log").read_text().split())


def test_row_28_and_37_a_death_costs_one_item_and_nothing_is_done_twice(tmp_path):
    first = ["a", "exit-1", "b", "unlucky-1", "c"]
    second = ["unlucky-2", "unlucky-3", "segfault-1", "exit-2", "interrupt-1"]
    answers = run(tmp_path, first + second)
    crashed = {"exit-1", "segfault-1", "exit-2"}
    expected = ["decoder-crashed" if item in crashed else item for item in first + second]
    assert names(answers) == expected
    assert "exit code 3" in answers[1].detail
    assert "Segmentation fault" in answers[7].detail
    unlucky = {"unlucky-1", "unlucky-2", "unlucky-3"}
    assert tries(tmp_path) == {item: 1 + (item in crashed | unlucky) for item in first + second}
    assert all_ended()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_item_is_not_blamed_for_the_death_of_a_later_one(tmp_path, monkeypatch, at):
    """It was, where the process died before the next item was sent, as on a machine that is busy.

    The item was answered, and its answer not read.
    """
    exact = Child.send
    monkeypatch.setattr(Child, "send", lambda *args: (exact(*args), time.sleep(0.2)))
    items = ["a", "b", "c", "d", "e"]
    items[at] = "exit-1"
    wanted = ["decoder-crashed" if item == "exit-1" else item for item in items]
    assert names(run(tmp_path, items)) == wanted
    assert all_ended()


def test_row_28_a_hang_in_c_code_is_ended_and_costs_one_item(tmp_path):
    items = ["a", "hang-1", "b", "slow-1", "c"]
    answers = run(tmp_path, items)
    assert names(answers) == ["a", "decoder-timeout", "b", "slow-1", "c"]
    assert answers[1].detail == HUNG
    assert tries(tmp_path) == {"a": 1, "hang-1": 1, "b": 1, "slow-1": 2, "c": 1}


def test_row_28_an_item_that_waits_too_long_is_tried_twice(tmp_path):
    answers = run(tmp_path, ["sleep-1", "a"], Limits(max_seconds=0.3))
    assert names(answers) == ["decoder-timeout", "a"]
    assert answers[0].detail == "not ready after 1.2 seconds, twice; the limit is 0.3 of computing"
    assert tries(tmp_path) == {"sleep-1": 2, "a": 1}


def test_files_that_never_end_cost_little_once_it_is_known_that_there_are_such(
    tmp_path, monkeypatch
):
    """Where sizes are known, one takes the whole limit, the next a part of it, and no third."""
    monkeypatch.setattr(isolated, "_SECONDS", 0.2)
    monkeypatch.setattr(isolated, "_CHANCES", (1.0, 0.7, 0.0))
    items = ["hang-1", "busy-1", "hang-2", "hang-3", "a", "hang-4", "busy-2"]
    with closing(Isolated(Limits(max_seconds=1.0))) as process:
        answers = list(process.answers(partial(act, tmp_path), items, [100] * len(items)))
    late = "decoder-timeout"
    assert names(answers) == [late, "busy-1", late, late, "a", late, late]
    told = "computed for {} seconds, and files before it in vain for the 1 of the limit"
    later = [told.format(seconds) for seconds in (0.7, 0.2, 0.2)]
    assert [answers[at].detail for at in (0, 2, 3, 5, 6)] == [HUNG, HUNG, *later]
    assert tries(tmp_path) == dict.fromkeys(items[:4], 2) | dict.fromkeys(items[4:], 1)


def test_no_file_is_charged_with_the_libraries_that_it_is_the_first_to_need(tmp_path, monkeypatch):
    """To load pydicom or nibabel takes longer than a file may compute at first."""
    monkeypatch.setattr(isolated, "_SECONDS", 0.3)
    (tmp_path / "decode-1").write_bytes(dicom(np.eye(8, dtype=np.uint8)))
    (tmp_path / "decode-2").write_bytes(nifti(np.eye(8, dtype=np.uint8)))
    items = ["decode-1", "hang-1", "hang-2", "decode-2", "hang-3", "decode-1"]
    with closing(Isolated(Limits(max_seconds=1.0))) as process:
        work = partial(decode_and_act, tmp_path)
        answers = list(process.answers(work, items, [100] * len(items)))
    late = "decoder-timeout"
    assert names(answers) == ["decode-1", late, late, "decode-2", late, "decode-1"]
    assert tries(tmp_path) == {"decode-1": 2, "hang-1": 2, "hang-2": 1, "decode-2": 1, "hang-3": 1}


def test_large_files_may_compute_for_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(isolated, "_SECONDS", 0.2)
    with closing(Isolated(Limits(max_seconds=1.0))) as process:
        list(process.answers(partial(act, tmp_path), ["busy-1", "busy-2"], [1 << 10, 3 << 20]))
    assert tries(tmp_path) == {"busy-1": 2, "busy-2": 1}


LOUD = """from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.isolated import Isolated
from worker_faults import loud

process = Isolated(Limits())
print([answer.records for answer in process.answers(loud, ["a", "b"])])
process.close()
"""


def test_what_a_decoder_prints_reaches_nobody(tmp_path):
    (tmp_path / "loud.py").write_text(LOUD)
    paths = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, tmp_path / "loud.py"],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("['a', 'b']\n", "")


def test_the_time_limit_is_of_one_item():
    answers = answers_of(slept, [0.4] * 5, Limits(max_seconds=0.4))
    assert len({answer.records for answer in answers}) == 1  # one process, for two seconds


def test_row_28_eating_memory_is_too_large_and_the_process_lives_on(tmp_path):
    answers = run(tmp_path, ["a", "eat-1", "b"], SMALL)
    assert names(answers) == ["a", "too-large", "b"]
    assert answers[0].records[1] == answers[2].records[1]  # one process


def test_memory_that_runs_out_while_the_answer_is_packed_is_too_large():
    # 180 MiB fit into 256, and their packed copy does not.
    first, large, last = answers_of(filled, [1, 180, 2], SMALL)
    assert [len(each.arrays["filled"]) >> 17 for each in (first, last)] == [1, 2]
    assert large.reason == "too-large"


def test_the_memory_limit_is_above_what_a_process_starts_with():
    (answer,) = answers_of(address_space, [None], SMALL)
    size, limit = answer.records
    assert abs(size + SMALL.max_memory - limit) < 64 << 20


def test_a_process_that_closes_its_pipe_and_lives_on_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "_PATIENCE", 0.1)
    assert names(run(tmp_path, ["closed-1", "a"])) == ["decoder-crashed", "a"]
    assert all_ended()


def test_an_exception_ends_the_process_and_costs_its_item(tmp_path):
    answers = run(tmp_path, ["raise-1", "a"])
    assert names(answers) == ["decoder-crashed", "a"]
    assert "exit code 4" in answers[0].detail


def test_row_49_bytes_that_are_no_answer_cost_their_item():
    first, bad, last = answers_of(nonsense, ["a", "bad", "b"])
    assert (first.records, last.records) == ("a", "b")
    assert (bad.reason, bad.detail) == (
        "decoder-crashed",
        "what its process answered is no answer, twice",
    )
    (bad,) = answers_of(rejected_nonsense, ["a"])
    assert bad.reason == "decoder-crashed"


@settings(
    deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from("aaabcx"), max_size=12))
def test_any_deaths_leave_the_order_whole(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("run")
    kinds = {"a": "plain", "b": "unlucky", "c": "exit", "x": "segfault"}
    items = [f"{kinds[kind]}-{number}" for number, kind in enumerate(drawn)]
    deadly = ("exit", "segfault")
    expected = ["decoder-crashed" if item.startswith(deadly) else item for item in items]
    assert names(run(folder, items)) == expected
    twice = (*deadly, "unlucky")
    assert not items or tries(folder) == {item: 1 + item.startswith(twice) for item in items}


def test_a_process_serves_until_it_is_closed(tmp_path):
    process = Isolated(SHORT)
    (first,) = process.answers(slept, [0])
    time.sleep(1.2)  # the time limit is of items, not of waiting for them
    (second,) = process.answers(slept, [0])
    assert first.records == second.records
    started = children()
    process.close()
    assert all_ended(started)
    assert next(process.answers(slept, [0])).records != first.records
    process.close()


def test_answers_that_nobody_waited_for_are_not_those_of_the_next_items():
    with closing(Isolated(SHORT)) as process:
        answers = process.answers(number, [*range(8)])
        assert next(answers).records == 0
        answers.close()
        assert [each.records for each in process.answers(number, [10, 11])] == [10, 11]


def test_processes_that_cannot_start_are_an_error_and_not_a_rejection(monkeypatch):
    process = Isolated(SHORT)
    monkeypatch.setattr(process._child, "_make", DeadOnArrival())
    with pytest.raises(ScanError, match=r"cannot be started \(exit code 1\)"):
        next(process.answers(slept, [0]))

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    nursery.NURSERY.close()
    monkeypatch.setattr(nursery.subprocess, "Popen", refuse)
    with pytest.raises(ScanError, match=r"cannot be started .*temporarily unavailable"):
        next(Isolated(SHORT).answers(slept, [0]))
    assert all_ended()


def test_limits_check_themselves():
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="max_seconds"):
            Limits(max_seconds=seconds)
    with pytest.raises(InputError, match="max_memory"):
        Limits(max_memory=(1 << 28) - 1)
