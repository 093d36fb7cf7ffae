"""The two jobs of the program under a sample of all faults; run.py has all of them."""

import random
import shutil
from collections import defaultdict

import client
import damage
import jobs
import pytest
import readers
import trials
from flips import SAME


@pytest.fixture(scope="module")
def folder():
    with client.workplace() as folder:
        yield folder


@pytest.fixture(scope="module")
def inputs(folder):
    return jobs.write_inputs(folder / "inputs")


@pytest.fixture(scope="module")
def made(folder, inputs):
    """The jobs, by their names."""
    return {job.name: job for job in jobs.real_jobs(inputs, folder / "templates")}


@pytest.fixture(scope="module")
def servers(folder):
    with client.fork_servers(readers.MODULES, folder) as servers:
        yield servers


@pytest.fixture(scope="module")
def whole(folder, inputs):
    return readers.write_whole(folder / "whole", inputs)


ROWS = {"build": 27, "build again": 27, "query": 14 + 10, "query again": 14 + 10}
OF_EACH_KIND = 1


def kind(plan):
    """Return by what a plan is drawn: the name of its fault, or what follows on its kill."""
    if len(plan) == 1:
        return plan[0].name
    return f"kill, then {'kill' if plan[1].action in trials.KILLS else 'failure'}"


def some_of_each_kind(plans, chosen):
    kinds = defaultdict(list)
    for plan in plans:
        kinds[kind(plan)].append(plan)
    assert len(kinds) == 11
    return [plan for some in kinds.values() for plan in chosen.sample(some, OF_EACH_KIND)]


@pytest.mark.parametrize("name", ROWS)
def test_row_29_and_30_a_job_survives_kills_and_failing_calls(servers, made, name):
    chosen, job = random.Random(name), made[name]
    prepared = trials.prepare_each(servers, job)
    assert {each.rows.total() for each in prepared.values()} == {ROWS[name]}
    plans = some_of_each_kind(trials.every_plan(servers[0], job, chosen), chosen)
    tally = trials.run_plans(servers, prepared, plans)
    assert tally.violations == []
    assert (tally.trials, tally.lost, tally.duplicate) == (len(plans), 0, 0)
    assert tally.count("killed") >= 4 * OF_EACH_KIND
    assert tally.count("raised") >= 2 * OF_EACH_KIND


@pytest.mark.parametrize("reader", readers.FOLDERS)
def test_row_32_and_33_damage_of_any_file_is_found(servers, whole, reader):
    chosen = random.Random(reader)
    every, cuts = (
        [flip for flip in flips if readers.is_to_find(reader, flip)]
        for flips in (damage.every_byte(whole, chosen), damage.every_cut(whole))
    )
    flips = chosen.sample(every, 100) + cuts
    tally = damage.survey(servers, whole, f"readers:{reader}", flips)
    assert tally.violations == []
    harmless = tally.count("harmless")
    assert tally.count("found") == len(flips) - harmless > 50
    assert harmless == 0 or reader == "open_history"


def test_undamaged_folders_are_read_without_complaint(servers, whole):
    root = servers[0].root
    words = ("a verdict", "intact", "intact", None, SAME, "intact")
    for reader, said in zip(readers.FOLDERS, words, strict=True):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        outcome = servers[0].run(f"readers:{reader}", {})
        assert outcome.ended == "returned"
        assert outcome.value == said or said is None


def test_row_30_a_killed_command_leaves_no_process_and_is_resumed(folder, made, inputs):
    root, command = folder / "command", jobs.commands(list(made.values()), inputs)[0]
    prepared = trials.prepare_command(root, command)
    seconds = trials.seconds_of_work(root, command)
    moment = trials.amid_work(root, seconds / 2)
    tally = trials.run_command_trial(root, prepared, command, moment)
    assert tally.violations == []
    assert tally.count("killed", "exit 4") == 1
