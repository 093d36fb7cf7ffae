"""The fault trials in full, on the two jobs of the program: the figures of docs/reliability.md.

Runs are killed before and after every call that changes the disk, and amid every write; every
call that touches our files fails, with an I/O error and as on a full disk; real commands are
killed at random moments; bytes of finished folders are changed. Exits with 1 when anything did
not hold.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import client
import damage
import jobs
import readers
import trials
from client import HERE, Server
from rich.table import Table
from trials import Command, Job, Tally

sys.path.insert(0, str(HERE.parent.parent / "benchmarks"))
import harness
from harness import Spread, console

KINDS = "jobs", "damage", "commands"
ENDINGS = ("killed", "raised", "returned", "found", "harmless", "call not reached")


def fault_trials(servers: Sequence[Server], job: Job, options: argparse.Namespace) -> Tally:
    """Run every trial of a job, or so many percent of them: where it is not `again`, beside them
    every call failing once.
    """
    percent = options.again if job.name.endswith("again") else options.percent
    chosen = random.Random(f"{options.seed} {job.name}")
    prepared = trials.prepare_each(servers, job)
    plans = trials.every_plan(servers[0], job, chosen, options.pairs)
    if options.kills:
        plans = [plan for plan in plans if all(fault.action in trials.KILLS for fault in plan)]
    once = [plan for plan in plans if plan[0].name == "EIO" and len(plan) == 1]
    if percent < 100:
        rest = plans if job.name.endswith("again") else [p for p in plans if p not in once]
        plans = chosen.sample(rest, -(-len(rest) * percent // 100))
        plans += [] if job.name.endswith("again") else once
    return trials.run_plans(servers, prepared, plans)


def command_trials(folder: Path, command: Command, count: int, seed: int) -> Tally:
    """Kill a command `count` times, each time at a random moment of its work."""
    chosen = random.Random(f"{seed} {command.job.name}")
    prepared = trials.prepare_command(folder, command)
    seconds = trials.seconds_of_work(folder, command)
    moments = (trials.amid_work(folder, chosen.uniform(0, seconds)) for _ in range(count))
    return trials.total(
        trials.run_command_trial(folder, prepared, command, moment) for moment in moments
    )


def damage_trials(
    servers: Sequence[Server], whole: Path, reader: str, count: int, seed: int
) -> Tally:
    """Change bytes that a reader reads, one at a time, `count` times; cut or remove each file."""
    chosen = random.Random(f"{seed} {reader}")

    def mine(flips: list[damage.Flip]) -> list[damage.Flip]:
        return [flip for flip in flips if readers.is_to_find(reader, flip)]

    times = -(-count // len(mine(damage.every_byte(whole, chosen))))
    every = mine(damage.every_byte(whole, chosen, times))
    flips = damage.sample_flips(every, count, chosen) + mine(damage.every_cut(whole))
    return damage.survey(servers, whole, f"readers:{reader}", flips)


def all_trials(folder: Path, options: argparse.Namespace) -> dict[str, Tally]:
    """Run everything in `folder`, and write the result as it goes.

    Returns a tally for each job, command and reader, by its name.
    """
    started, tallies = time.monotonic(), dict[str, Tally]()

    def add(name: str, tally: Tally) -> None:
        console.print(f"{name}: {tally.trials:,} trials, {len(tally.violations)} violations")
        tallies[name] = tally
        write(options, tallies, time.monotonic() - started)

    inputs = jobs.write_inputs(folder / "inputs")
    made = jobs.real_jobs(inputs, folder / "templates")
    whole = readers.write_whole(folder / "whole", inputs)
    with client.fork_servers(readers.MODULES, folder, options.processes) as servers:
        for job in made if "jobs" in options.only else ():
            add(job.name, fault_trials(servers, job, options))
        for reader, share in readers.SHARES.items() if "damage" in options.only else ():
            count = options.corruptions * share // sum(readers.SHARES.values())
            add(reader, damage_trials(servers, whole, reader, count, options.seed))
    commands = jobs.commands(made, inputs) if "commands" in options.only else []
    count = -(-options.commands // max(1, len(commands)))

    def one(command: Command) -> Tally:
        place = folder / "commands" / command.job.name
        return command_trials(place, command, count, options.seed)

    with ThreadPoolExecutor(options.processes) as pool:
        for command, tally in zip(commands, pool.map(one, commands), strict=True):
            add(f"{command.job.name}, as a command", tally)
    return tallies


def show(whole: Tally) -> None:
    """Print the runs by fault and how they ended, and what did not hold."""
    table = Table(title="runs that met a fault")
    table.add_column("fault")
    others = sorted({ended for _, ended in whole.runs} - set(ENDINGS))
    for ended in (*ENDINGS, *others):
        table.add_column(ended, justify="right")
    for fault in dict.fromkeys(fault for fault, _ in whole.runs):
        table.add_row(fault, *(f"{whole.runs[fault, ended]:,}" for ended in (*ENDINGS, *others)))
    console.print(table)
    for violation in whole.violations:
        console.print(str(violation), markup=False)
    console.print(
        f"{whole.trials:,} trials, {whole.count('killed'):,} kills: {whole.lost} rows lost, "
        f"{whole.duplicate} there twice, {len(whole.violations)} violations"
    )


def main() -> int:
    """Run all, write benchmarks/results/faults.json; return the exit code."""
    sizes = {
        "percent": 100,
        "again": 100,
        "pairs": 40,
        "corruptions": 20_000,
        "commands": 40,
        "processes": client.PROCESSES,
    }
    parser = harness.parser(__doc__, sizes)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="of the trials")
    parser.add_argument("--kills", action="store_true", help="of the faults of jobs, kills alone")
    parser.add_argument("--where", type=Path, help="a folder, such as one of another file system")
    options = parser.parse_args()
    with client.workplace(options.where) as folder:
        whole = trials.total(all_trials(folder, options).values())
    show(whole)
    return 1 if whole.violations or whole.lost or whole.duplicate else 0


def write(options: argparse.Namespace, tallies: Mapping[str, Tally], seconds: float) -> None:
    """Write benchmarks/results/faults.json, or faults_KIND.json of some kinds of trials alone."""
    alone = options.only if len(options.only) < len(KINDS) else ()
    whole = trials.total(tallies.values())
    harness.write(
        "_".join(["faults", *alone, *["elsewhere"] * bool(options.where)]),
        options,
        {"all trials": Spread.of([seconds], "s")},
        {},
        trials=whole.trials,
        kills=whole.count("killed"),
        rows_lost=whole.lost,
        rows_twice=whole.duplicate,
        violations=[asdict(violation) for violation in whole.violations],
        runs={name: _runs(tally.runs) for name, tally in tallies.items()},
    )


def _runs(runs: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return the counts of runs as JSON can hold them: by fault, and by how they ended."""
    found: dict[str, dict[str, int]] = {}
    for (fault, ended), count in sorted(runs.items()):
        found.setdefault(fault, {})[ended] = count
    return found


if __name__ == "__main__":
    sys.exit(main())
