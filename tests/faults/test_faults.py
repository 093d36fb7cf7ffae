"""The fault harness itself, on small jobs: it strikes where it says, and finds each kind of fault.

A harness that finds nothing proves nothing, so every rule that it checks is broken here once.
"""

import errno
import random
import shutil
import sys
import time

import client
import damage
import mutants
import pytest
import standin
import trials
from client import Fault
from trials import Command, Job


@pytest.fixture(scope="module")
def servers():
    """Two fork servers, each with a folder to work in."""
    with (
        client.workplace() as folder,
        client.fork_servers(["standin", "flips"], folder) as servers,
    ):
        yield servers


@pytest.fixture
def server(servers):
    return servers[0]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What a job's folder holds before: an older `made`."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "made").mkdir()
    (folder / "made" / "old").write_text("what was there before")
    return folder


def standin_job(name, template, seconds=60):
    return Job(name, f"standin:{name}", template, "made", standin.rows, seconds=seconds)


def run_five_calls(server, fault):
    """Run `five_calls` in an empty folder: how it ended, and what is in the folder then."""
    shutil.rmtree(server.root, ignore_errors=True)
    server.root.mkdir()
    outcome = server.run("standin:five_calls", {}, fault)
    return outcome, {path.name: path.read_bytes() for path in server.root.iterdir()}


STATES = [{}, {"a.new": b""}, *[{"a.new": b"12345678"}] * 3, {"a": b"12345678"}]
CALLS = ["open64", "write", "fsync", "close", "rename"]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_kill_strikes_just_before_or_just_after_the_call(server, number):
    for action, expected in (
        (client.KILL_BEFORE, STATES[number - 1]),
        (client.KILL_AFTER, STATES[number]),
    ):
        outcome, left = run_five_calls(server, Fault("", action, number, client.WRITING))
        assert (outcome.ended, left) == ("killed", expected)
        assert outcome.struck.split()[0] == CALLS[number - 1]


def test_a_kill_amid_a_write_leaves_half_of_it(server):
    outcome, left = run_five_calls(server, Fault("", client.KILL_TORN, 1, client.DATA))
    assert (outcome.ended, left) == ("killed", {"a.new": b"1234"})


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_failing_call_does_nothing_and_gives_the_error(server, number, error):
    fault = Fault("", client.FAIL, number, client.WRITING, error)
    outcome, left = run_five_calls(server, fault)
    assert outcome.ended == "raised"
    assert outcome.error["text"].startswith(f"[Errno {error}]")
    assert left == STATES[number - 1]


def test_a_short_write_takes_half_and_says_so(server):
    outcome, left = run_five_calls(server, Fault("", client.SHORT, 1, client.DATA))
    assert (outcome.ended, outcome.value, left) == ("returned", 4, {"a": b"1234"})


def test_calls_are_counted_by_kind_and_only_under_the_root(server):
    def count(kinds):
        return run_five_calls(server, Fault("", client.COUNT, 0, kinds))[0].calls

    kinds = (client.DATA, client.NAMES, client.SYNC, client.WRITING)
    assert [count(kind) for kind in kinds] == [1, 2, 2, 5]


def test_a_call_that_is_not_reached_strikes_nothing(server):
    outcome, left = run_five_calls(server, Fault("", client.KILL_BEFORE, 6, client.WRITING))
    assert (outcome.ended, outcome.struck, left) == ("returned", "", STATES[-1])


@pytest.mark.parametrize("kinds", [client.READS, client.LOOKS])
def test_reads_and_looks_fail_too(server, kinds):
    shutil.rmtree(server.root, ignore_errors=True)
    server.root.mkdir()
    (server.root / "old").write_text("text")
    counted = server.run("standin:four_looks", {}, Fault("", client.COUNT, 0, kinds))
    assert counted.value == ["old"]
    assert counted.calls >= 2
    for number in range(1, counted.calls + 1):
        fault = Fault("", client.FAIL, number, kinds, errno.EIO)
        outcome = server.run("standin:four_looks", {}, fault)
        assert outcome.ended == "raised", outcome
        assert "[Errno 5]" in outcome.error["text"]


def test_a_careful_job_passes_every_kind_of_fault(servers, template):
    job = standin_job("careful", template)
    prepared = trials.prepare(servers[0], job)
    assert prepared.rows.total() == standin.SHARDS * standin.ROWS
    chosen = random.Random(0)
    kills = trials.every_kill(servers[0], job)
    plans = [[fault] for fault in chosen.sample(kills, 50)]
    plans += [chosen.sample(kills, 2) for _ in range(10)]
    plans += [[fault] for fault in chosen.sample(trials.every_failure(servers[0], job), 60)]
    tally = sum_of(servers, prepared, plans)
    assert tally.violations == []
    assert (tally.trials, tally.lost, tally.duplicate) == (120, 0, 0)
    assert tally.count("killed") >= 55
    assert tally.count("raised") >= 30


def sum_of(servers, prepared, plans):
    return trials.run_plans(servers, {server.root: prepared for server in servers}, plans)


@pytest.mark.parametrize(
    ("name", "plan", "complaint"),
    [
        ("in_place", trials.every_kill, "made is not intact"),
        ("repeating", trials.every_kill, "the run after it ends in another state"),
        ("untidy", trials.every_kill, "is left over"),
        ("forgetful", trials.every_failure, "silent success"),
        ("crashing", trials.every_failure, "it raised KeyError"),
    ],
)
def test_a_job_that_breaks_a_rule_is_found_out(servers, template, name, plan, complaint):
    job = standin_job(name, template)
    prepared = trials.prepare(servers[0], job)
    faults = random.Random(1).sample(plan(servers[0], job), 24)
    tally = sum_of(servers, prepared, [[fault] for fault in faults])
    assert any(complaint in violation.text for violation in tally.violations)
    assert (tally.duplicate > 0) == (name == "repeating")


def test_a_job_that_hangs_is_found_out_and_the_server_goes_on(server, template):
    job = standin_job("hanging", template, seconds=4)
    prepared = trials.prepare(server, job)
    fault = Fault("EIO", client.FAIL, 1, client.DATA, errno.EIO)
    tally = trials.run_trial(server, prepared, [fault])
    assert [violation.text for violation in tally.violations] == ["it hung"]


@pytest.mark.parametrize(
    ("folder", "child", "complaints"),
    [
        (".made.partial", False, []),
        ("made", True, ["processes that it had started live on", "made is not intact"]),
    ],
)
def test_a_command_is_killed_and_judged(tmp_path, server, template, folder, child, complaints):
    prepared = trials.prepare(server, standin_job("careful", template))
    code = f"import standin; standin.stop_midway({folder!r}, {child})"
    path = f"import sys; sys.path.insert(0, {str(client.HERE)!r}); "

    def ready():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)

    command = Command(prepared.job, [sys.executable, "-c", path + code])
    tally = trials.run_command_trial(tmp_path / "root", prepared, command, ready, patience=1)
    assert tally.count("killed") == 1
    found = [violation.text for violation in tally.violations]
    assert [text.partition(":")[0] for text in found] == complaints


@pytest.fixture(scope="module")
def finished(servers, template, tmp_path_factory):
    """A root in which the careful job has ended, and a sample of its bytes to change."""
    trials.prepare(servers[0], standin_job("careful", template))
    folder = tmp_path_factory.mktemp("finished") / "root"
    shutil.copytree(servers[0].root, folder)
    chosen = random.Random(2)
    return folder, chosen.sample(damage.every_byte(folder, chosen), 300)


def test_every_changed_byte_is_found_by_a_reader_that_verifies(server, finished):
    folder, flips = finished
    tally = damage.run_flips(server, folder, "standin:verified", flips)
    assert tally.violations == []
    assert tally.count("found") == tally.trials == 300
    assert trials.state(server.root) == trials.state(folder)


def test_a_reader_that_believes_the_bytes_is_found_out(server, finished):
    folder, flips = finished
    tally = damage.run_flips(server, folder, "standin:believed", flips)
    assert tally.count("missed") > 0
    assert len(tally.violations) == 300 - tally.count("found")


def test_a_reader_that_dies_is_found_out_for_each_byte(server, finished):
    folder, flips = finished
    tally = damage.run_flips(server, folder, "standin:dying", flips[:5])
    assert tally.count("crash") == len(tally.violations) == 5


def test_without_a_compiler_the_harness_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        client.build_shim(tmp_path)


def test_the_line_that_a_mutant_changes_is_in_the_code_once():
    for where, old, new in mutants.MUTANTS:
        text = (mutants.ROOT / "scanner" / where).read_text("utf-8")
        assert text.count(old) == 1 and old != new, f"{where} has {text.count(old)} of {old!r}"
