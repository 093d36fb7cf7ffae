"""Power cuts: what the harness says of jobs that forget to flush, and a sample on the real jobs."""

import random

import audit_jobs
import client
import jobs
import power
import pytest
import trials
from disk import Disk, File
from trials import Job


@pytest.fixture(scope="module")
def folder():
    with client.workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def servers(folder):
    with client.fork_servers(["standin", *power.MODULES], folder, 1) as servers:
        yield servers


# What a disk may lose.


def states_of(disk, folder, count=200):
    """Return the states that a power cut may leave: the content of each file, by its name."""
    folder.mkdir()
    found = []
    for number in range(count):
        root = folder / str(number)
        disk.write_left(root, random.Random(number))
        found.append({path.name: path.read_bytes() for path in root.iterdir()})
    return found


def recorded_calls(server, folder, forgets=""):
    """Record `put` in a folder that holds an older file."""
    template = folder / "template"
    if not template.exists():
        template.mkdir()
        (template / "made").write_bytes(b"old" * 400)
    job = Job(forgets, "standin:put", template, "made", lambda _: [], {"forgets": forgets})
    return power.record(server, job), template


def test_what_was_not_flushed_may_be_there_in_any_part(servers, tmp_path):
    recorded, template = recorded_calls(servers[0], tmp_path)
    names = [call.name.removesuffix("64") for call in recorded.calls]
    assert names == ["open", "write", "fsync", "rename", "fsync"]
    disk = Disk(template)
    old, new = (template / "made").read_bytes(), recorded.calls[1].data
    for call in recorded.calls[:2]:
        disk.do(call)
    found = states_of(disk, tmp_path / "cut")
    assert all(state["made"] == old for state in found)
    left = {state.get(".made.new") for state in found}
    sectors = [new[at : at + 512] for at in range(0, len(new), 512)]
    lost = [b"\0" * len(sector) for sector in sectors]
    assert {None, b"", new} < left
    assert all(
        each in (kept, gone)
        for data in left
        if data
        for at, kept, gone in zip(range(0, len(new), 512), sectors, lost, strict=True)
        for each in [data[at : at + 512]]
    )
    assert b"".join([lost[0], *sectors[1:]]) in left


def test_a_flushed_file_is_whole_and_a_rename_is_whole_or_not_there(servers, tmp_path):
    recorded, template = recorded_calls(servers[0], tmp_path)
    disk, new = Disk(template), recorded.calls[1].data
    for call in recorded.calls[:4]:
        disk.do(call)
    old = (template / "made").read_bytes()
    found = states_of(disk, tmp_path / "cut")
    wanted = [{"made": old}, {"made": old, ".made.new": new}, {"made": new}]
    assert all(state in wanted for state in found)
    assert all(state in found for state in wanted)
    disk.do(recorded.calls[4])
    assert all(state == {"made": new} for state in states_of(disk, tmp_path / "flushed", 50))


def test_the_size_may_be_any_that_the_file_had():
    file = File([(b"", 0o600)])
    for part in (b"a" * 700, b"b" * 700):
        file.write(len(file.versions[-1][0]), part)
    sizes = {len(file.left("any", random.Random(number))[0]) for number in range(50)}
    assert sizes == {0, 700, 1400}


def test_a_run_of_which_not_all_is_seen_is_refused(servers, tmp_path):
    template = tmp_path / "template"
    template.mkdir()
    (template / "made").write_bytes(b"old")
    job = Job("put_mapped", "standin:put_mapped", template, "made", lambda _: [])
    with pytest.raises(RuntimeError, match="not all that it did was recorded: made differs"):
        power.record(servers[0], job)


# What the harness says of jobs.


@pytest.mark.parametrize(
    ("forgets", "complaints"),
    [
        ("", set()),
        ("asks", set()),
        ("data", {"made is not intact", "it had ended, and made differs"}),
        ("after", {"made is not intact"}),
        ("name", {"it had ended, and made differs"}),
        ("check", {"silent success"}),
    ],
)
def test_a_job_that_forgets_to_flush_is_found_out(servers, tmp_path, forgets, complaints):
    recorded, _ = recorded_calls(servers[0], tmp_path, forgets)
    tally = trials.total(
        power.run_cut(servers[0], recorded, random.Random(number)) for number in range(30)
    )
    texts = [violation.text for violation in tally.violations]
    assert {each for each in complaints if any(each in text for text in texts)} == complaints
    assert bool(texts) == bool(complaints) == bool(tally.count(power.WRONG))
    assert (tally.count(power.TOLD) > 0) == (forgets == "asks")


# The jobs of the program.

STATES = {"build": 12, "build again": 12, "query": 4, "release": 24, "history": 60}


@pytest.fixture(scope="module")
def made(folder, servers):
    inputs = jobs.write_inputs(folder / "inputs")
    real = jobs.real_jobs(inputs, folder / "templates")
    more = audit_jobs.quick_jobs(servers[0], inputs, folder / "templates")
    return {job.name: job for job in (*real, *more)}


@pytest.mark.parametrize("name", STATES)
def test_a_job_survives_power_cuts(servers, made, name):
    recorded = power.record_each(servers, made[name])
    tally = power.run_states(servers, recorded, STATES[name], random.Random(name))
    assert tally.violations == []
    assert tally.trials > 0.8 * STATES[name]  # others had been seen before
    assert tally.count(power.SAME, power.TOLD) == tally.trials
