"""States that a power cut may leave: the jobs of the program run again on each of them.

A run is recorded. At random moments of it the power is cut, and of what was not flushed by then a
random part is lost (`disk`). In each state what was published must be as before, or as it was to
be made; and once the run had ended, nothing of it may be lost. The job is run again: it must end
in the bytes of an undisturbed run, or with one of our errors. Then, with what the error names
removed, it must end in those bytes. Exits with 1 when anything did not hold.

    python tests/faults/power.py
"""

import argparse
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from random import Random

import audit_jobs
import client
import jobs
import trials
from client import HERE, Outcome, Server
from disk import Call, Disk, read_record
from trials import Job, Prepared, Tally, Violation, differences, not_intact, part, reset, state

sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))
import harness
from harness import Spread, console

MODULES = (*jobs.MODULES, "audit_jobs")
SHARES = {
    "history": 650,
    "release": 7,
    "audit": 1,
    "query": 12,
    "query again": 12,
    "build": 159,
    "build again": 159,
}
"""Of 1,000 states, how many are of a job: fewer where a run takes long."""
PASSES = 10  # in which all jobs take their turns
FAULT = "power cut"
AT_A_CUT = 4  # states of the same moment
ROUNDS = 5  # of as many tries as states are missing
SAME, TOLD, WRONG = "the same bytes", "an error, then the same bytes", "wrong"
SEEN = "a state seen before"
"""How the runs after a power cut ended. A state that was seen before is not run again."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A job on a server: its end state, what it did in the root, and the states that were tried.

    `unflushed` counts what could be lost after each call.
    """

    prepared: Prepared
    calls: Sequence[Call]
    unflushed: Sequence[int]
    tried: set[int] = field(default_factory=set)


def record(server: Server, job: Job) -> Recorded:
    """Record an undisturbed run; RuntimeError when what it did was not seen whole."""
    prepared, log = trials.prepare(server, job), server.root.with_suffix(".record")
    reset(server.root, job)
    outcome = server.run(job.function, job.arguments, None, job.seconds, log)
    if outcome.ended != "returned":
        raise RuntimeError(f"{job.name}: recorded, it {outcome}")
    wanted = state(server.root)
    calls, unflushed, disk = read_record(log, server.root), list[int](), Disk(job.template)
    for call in calls:
        disk.do(call)
        unflushed.append(disk.root.unflushed)
    shutil.rmtree(server.root)
    disk.write_now(server.root)
    if differ := differences(wanted, state(server.root)):
        raise RuntimeError(f"{job.name}: not all that it did was recorded: {differ}")
    return Recorded(prepared, calls, unflushed)


def record_each(servers: Sequence[Server], job: Job) -> dict[Path, Recorded]:
    """Record a job on every server: what it makes may name the folder that it was made in."""
    return {server.root: record(server, job) for server in servers}


def run_states(
    servers: Sequence[Server], recorded: Mapping[Path, Recorded], count: int, random: Random
) -> Tally:
    """Judge `count` states of a job, no two alike on a server: fewer where none are found."""
    tally = Tally()

    def one(server: Server, number: int) -> Tally:
        return run_cut(server, recorded[server.root], Random(number))

    for _ in range(ROUNDS):
        missing = max(0, -(-(count - tally.trials) // AT_A_CUT))
        numbers = [random.getrandbits(32) for _ in range(missing)]
        tally.add(trials.total(trials.on_each(servers, one, numbers)))
    return tally


def run_cut(server: Server, recorded: Recorded, random: Random) -> Tally:
    """Cut the power, mostly when much can be lost: judge some states that this may leave.

    One time in eight it is cut when the run has ended.
    """
    calls, tally = recorded.calls, Tally()
    (cut,) = random.choices(range(1, len(calls) + 1), recorded.unflushed)
    if random.random() < 1 / 8:
        cut = len(calls)
    disk = Disk(recorded.prepared.job.template)
    for call in calls[:cut]:
        disk.do(call)
    for _ in range(AT_A_CUT):
        shutil.rmtree(server.root, ignore_errors=True)
        disk.write_left(server.root, random)
        key = hash((cut == len(calls), *sorted(state(server.root).items())))
        if key in recorded.tried:
            tally.runs[FAULT, SEEN] += 1
            continue
        recorded.tried.add(key)
        tally.add(judge(server, recorded, cut))
    return tally


def judge(server: Server, recorded: Recorded, cut: int) -> Tally:
    """Judge the state in a server's root, of a power cut after so many calls."""
    prepared, tally = recorded.prepared, Tally(trials=1)
    at, job = recorded.calls[cut - 1], prepared.job.name
    where = f"after call {cut} of {len(recorded.calls)}"
    wrong = not_intact(server.root, prepared, may_be_aside=True)
    if cut == len(recorded.calls):
        wrong += _lost_after_the_end(server.root, prepared)
    ended, what = _run_again(server, prepared)
    tally.runs[FAULT, WRONG if wrong or what else ended] += 1
    struck = f"{at.name} {at.path}"
    tally.violations += [Violation(job, f"{FAULT} {where}", struck, each) for each in wrong + what]
    return tally


def _lost_after_the_end(root: Path, prepared: Prepared) -> list[str]:
    """Return what is missing of what a run had made when it ended."""
    job = prepared.job
    found = part(state(root, job.volatile), job.target)
    if differ := differences(prepared.made, found):
        return [f"it had ended, and {differ}"]
    rows = Counter(job.rows(root / job.target))
    return [] if rows == prepared.rows else ["it had ended, and rows are lost"]


def _run_again(server: Server, prepared: Prepared) -> tuple[str, list[str]]:
    """Run the job on a state, and once more after an error: how it ended, and what is wrong."""
    job = prepared.job
    outcome = server.run(job.function, job.arguments, None, job.seconds)
    ended = SAME
    if outcome.ended == "raised" and "ScanError" in outcome.error["classes"]:
        ended = TOLD
        _remove_named(server.root, outcome)
        outcome = server.run(job.function, job.arguments, None, job.seconds)
    if outcome.ended != "returned":
        return ended, [f"the run after it {outcome}"]
    found = state(server.root, job.volatile)
    if job.may_stay:
        found = {name: what for name, what in found.items() if not re.search(job.may_stay, name)}
    if differ := differences(prepared.after, found):
        return ended, [f"silent success: the run after it returned, and {differ}"]
    return ended, []


def _remove_named(root: Path, outcome: Outcome) -> None:
    """Remove what an error names first, as it asks for."""
    named = root / outcome.error["text"].partition(": ")[0]
    if named.is_dir():
        shutil.rmtree(named)
    else:
        named.unlink(missing_ok=True)


def all_states(folder: Path, options: argparse.Namespace) -> dict[str, Tally]:
    """Run everything in `folder`, and write the result as it goes: a tally for each job."""
    inputs, templates = jobs.write_inputs(folder / "inputs"), folder / "templates"
    made, tallies = jobs.real_jobs(inputs, templates), {name: Tally() for name in SHARES}
    with client.fork_servers(MODULES, folder, options.processes) as servers:
        made += audit_jobs.quick_jobs(servers[0], inputs, templates)
        made.append(audit_jobs.audit_job(servers[0], inputs, templates))
        recorded = {job.name: record_each(servers, job) for job in made}
        started = time.monotonic()
        for number, (name, share) in product(range(PASSES), SHARES.items()):
            whole = options.states * share * (number + 1) // (PASSES * sum(SHARES.values()))
            chosen, tally = Random(f"{options.seed} {name} {number}"), tallies[name]
            tally.add(run_states(servers, recorded[name], whole - tally.trials, chosen))
            told(name, tally)
            write(options, tallies, time.monotonic() - started)
    return tallies


def told(name: str, tally: Tally) -> None:
    """Say how a job did."""
    endings = ", ".join(f"{ended}: {count:,}" for (_, ended), count in sorted(tally.runs.items()))
    console.print(
        f"{name}: {tally.trials:,} states, {len(tally.violations)} violations ({endings})"
    )
    for violation in tally.violations[:10]:
        console.print(str(violation), markup=False)


def write(options: argparse.Namespace, tallies: Mapping[str, Tally], seconds: float) -> None:
    """Write benchmarks/results/power.json."""
    whole = trials.total(tallies.values())
    harness.write(
        "power",
        options,
        {"all states": Spread.of([seconds], "s")},
        {},
        states=whole.trials,
        wrong=whole.count(WRONG),
        violations=[asdict(violation) for violation in whole.violations],
        jobs={
            name: {"states": tally.trials} | {ended: n for (_, ended), n in tally.runs.items()}
            for name, tally in tallies.items()
        },
    )


def main() -> int:
    """Run all, write the result; return the exit code."""
    sizes = {"states": 20_000, "processes": client.PROCESSES}
    options = harness.parser(__doc__, sizes).parse_args()
    with client.workplace() as folder:
        whole = trials.total(all_states(folder, options).values())
    console.print(f"{whole.trials:,} states after a power cut, {len(whole.violations)} violations")
    return int(bool(whole.violations))


if __name__ == "__main__":
    sys.exit(main())
