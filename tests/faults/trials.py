"""Faults, the trials made of them, and what must hold after each.

    job + faults -> runs in a fork server, each meeting one fault, then one undisturbed -> Tally

After a kill or a failed call, what was published before is intact, or the new is whole; a run
that meets a failed call raises a ScanError or OSError, or ends in the very bytes of a run that
met none; and the run after it ends in those bytes, with nothing else left beside them.
"""

import errno
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any, TypeVar

from client import (
    ALL,
    COUNT,
    DATA,
    FAIL,
    FAIL_ON,
    KILL_AFTER,
    KILL_BEFORE,
    KILL_TORN,
    SHORT,
    WRITING,
    Fault,
    Outcome,
    Server,
)

from deepssim_scan.errors import Damaged
from deepssim_scan.storage.records import read_json

KILLS = (KILL_BEFORE, KILL_AFTER, KILL_TORN)
ACCEPTED = {"ScanError", "OSError"}  # what a run may raise when a call fails

State = dict[str, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """What is run: a function of the fork server that makes `target` in its working directory.

    `template` is what that directory holds before. `volatile` names files of ours, wherever they
    are, and a regular expression of what in each may differ from run to run. `rows` gives the names
    of a finished target's rows. A run that takes longer than `seconds` hangs. `may_stay` is of
    names that a power cut may bring back, and the next job takes away: a regular expression.
    """

    name: str
    function: str
    template: Path
    target: str
    rows: Callable[[Path], Iterable[str]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    volatile: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 60
    may_stay: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job, the state of its target before and of all after an undisturbed run, and its rows."""

    job: Job
    before: State
    after: State
    rows: Counter[str]

    @property
    def made(self) -> State:
        """The state of the target after an undisturbed run."""
        return part(self.after, self.job.target)


@dataclass(frozen=True, slots=True)
class Violation:
    """What did not hold, in which trial, and the call that was struck last before."""

    job: str
    faults: str
    struck: str
    text: str


@dataclass(slots=True)
class Tally:
    """Sums over trials: the runs by fault and how they ended, and what did not hold."""

    trials: int = 0
    lost: int = 0
    duplicate: int = 0
    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Take another's sums into this one."""
        self.trials += other.trials
        self.lost += other.lost
        self.duplicate += other.duplicate
        self.runs.update(other.runs)
        self.violations += other.violations

    def count(self, *ended: str) -> int:
        """Return how many runs that met a fault ended in one of these ways."""
        return sum(count for (_, how), count in self.runs.items() if how in ended)


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole


def state(folder: Path, volatile: Mapping[str, str] | None = None) -> State:
    """Return the kind, permissions and SHA-256 of everything under a folder, by relative path."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        mode = f"{stat.S_IMODE(path.lstat().st_mode):o}"
        key = (volatile or {}).get(path.name)
        found[name] = f"folder {mode}" if path.is_dir() else f"file {mode} {_digest(path, key)}"
    return found


def _digest(path: Path, volatile: str | None) -> str:
    data = path.read_bytes()
    if volatile is not None:
        if path.suffix == ".json":
            try:
                read_json(path)  # which verifies the checksum
            except Damaged:
                return "damaged"
        data = re.sub(volatile.encode(), b"", data)
    return hashlib.sha256(data).hexdigest()


def part(whole: State, folder: str) -> State:
    """Return the state of one folder in a root's, itself included."""
    return {name: what for name, what in whole.items() if Path(name).parts[0] == folder}


def prepare(server: Server, job: Job) -> Prepared:
    """Run a job undisturbed, twice, for its end state; RuntimeError when the two differ."""

    def undisturbed() -> None:
        outcome = server.run(job.function, job.arguments, None, job.seconds)
        if outcome.ended != "returned":
            raise RuntimeError(f"{job.name}: undisturbed, it {outcome}\n{outcome.error}")

    first, second = (_prepare(server.root, job, undisturbed) for _ in range(2))
    if differ := differences(first.after, second.after):
        raise RuntimeError(f"{job.name}: two undisturbed runs differ: {differ}")
    return second


def _prepare(root: Path, job: Job, undisturbed: Callable[[], object]) -> Prepared:
    reset(root, job)
    before = part(state(root, job.volatile), job.target)
    undisturbed()
    return Prepared(job, before, state(root, job.volatile), Counter(job.rows(root / job.target)))


def prepare_each(servers: Sequence[Server], job: Job) -> dict[Path, Prepared]:
    """Prepare a job on every server: what it makes may name the folder that it was made in."""
    return {server.root: prepare(server, job) for server in servers}


def count_calls(server: Server, job: Job, kinds: int) -> int:
    """Return how many calls of `kinds` an undisturbed run makes."""
    reset(server.root, job)
    fault = Fault("count", COUNT, 0, kinds)
    return server.run(job.function, job.arguments, fault, job.seconds).calls


def every_kill(server: Server, job: Job) -> list[Fault]:
    """Return a kill before and after every call that changes the disk, and amid every write."""
    writing, data = (count_calls(server, job, kinds) for kinds in (WRITING, DATA))
    return [
        *(Fault("kill before", KILL_BEFORE, n + 1, WRITING) for n in range(writing)),
        *(Fault("kill after", KILL_AFTER, n + 1, WRITING) for n in range(writing)),
        *(Fault("kill amid a write", KILL_TORN, n + 1, DATA) for n in range(data)),
    ]


def every_failure(server: Server, job: Job) -> list[Fault]:
    """Return every call failing once: with EIO; with a full disk, once and from then on; short."""
    every, writing, data = (count_calls(server, job, kinds) for kinds in (ALL, WRITING, DATA))
    full = errno.ENOSPC
    return [
        *(Fault("EIO", FAIL, n + 1, ALL, errno.EIO) for n in range(every)),
        *(Fault("ENOSPC", FAIL, n + 1, WRITING, full) for n in range(writing)),
        *(Fault("ENOSPC from then on", FAIL_ON, n + 1, DATA, full) for n in range(data)),
        *(Fault("EIO from then on", FAIL_ON, n + 1, WRITING, errno.EIO) for n in range(writing)),
        *(Fault("short write", SHORT, n + 1, DATA) for n in range(data)),
    ]


def every_plan(server: Server, job: Job, random: Random, pairs: int = 40) -> list[list[Fault]]:
    """Return every kill and every failure as a trial of its own, and `pairs` of two faults.

    Of failures that last, which take long and differ little, one in eight. What resumes after a
    kill is killed `pairs` times, and as often failed; and as often there is a kill between calls
    that change nothing.
    """
    kills, failures, every = every_kill(server, job), every_failure(server, job), []
    lasting = [fault for fault in failures if fault.action == FAIL_ON]
    failures = [fault for fault in failures if fault.action != FAIL_ON]
    failures += random.sample(lasting, -(-len(lasting) // 8))
    last = count_calls(server, job, ALL)
    for _ in range(pairs):
        anywhere = Fault("kill anywhere", KILL_BEFORE, random.randint(1, last), ALL)
        every += [
            [anywhere],
            random.sample(kills, 2),
            [random.choice(kills), random.choice(failures)],
        ]
    return [*every, *([fault] for fault in (*kills, *failures))]


def run_trial(server: Server, prepared: Prepared, faults: Sequence[Fault]) -> Tally:
    """Run a job once for each fault, and once undisturbed; judge the state after every run."""
    job, tally, struck = prepared.job, Tally(trials=1), ""
    names = ", then ".join(f"{fault.name} call {fault.n}" for fault in faults)

    def violated(text: str) -> None:
        tally.violations.append(Violation(job.name, names, struck, text))

    reset(server.root, job)
    for fault in faults:
        outcome = server.run(job.function, job.arguments, fault, job.seconds)
        struck = outcome.struck or struck
        tally.runs[fault.name, outcome.ended if outcome.struck else "call not reached"] += 1
        for text in _wrong(server.root, prepared, fault, outcome):
            violated(text)
    outcome = server.run(job.function, job.arguments, None, job.seconds)
    if outcome.ended != "returned":
        violated(f"the run after it {outcome}")
    elif differ := differences(prepared.after, state(server.root, job.volatile)):
        violated(f"the run after it ends in another state: {differ}")
    _count_rows(server.root, prepared, tally)
    return tally


def run_plans(
    servers: Sequence[Server], prepared: Mapping[Path, Prepared], plans: Iterable[Sequence[Fault]]
) -> Tally:
    """Run a trial for each plan, a list of faults, on whichever server is free."""

    def one(server: Server, plan: Sequence[Fault]) -> Tally:
        return run_trial(server, prepared[server.root], plan)

    return total(on_each(servers, one, plans))


@dataclass(frozen=True, slots=True)
class Command:
    """A job as a process of its own: its words, and the exit code of an undisturbed run."""

    job: Job
    words: Sequence[str]
    code: int = 0

    def start(self, root: Path) -> "subprocess.Popen[bytes]":
        """Start it in `root`, silent, in a process group of its own."""
        null = subprocess.DEVNULL
        return subprocess.Popen(
            self.words, cwd=root, stdout=null, stderr=null, start_new_session=True
        )

    def failure(self, root: Path) -> str:
        """Run it in `root` to its end; return what is wrong with that, or ""."""
        done = subprocess.run(self.words, cwd=root, capture_output=True, text=True, check=False)
        ended = f"ended with {done.returncode}: {done.stderr[-2000:]}"
        return "" if done.returncode == self.code else ended


def prepare_command(root: Path, command: Command) -> Prepared:
    """Run a command undisturbed for its end state; RuntimeError when it fails."""

    def undisturbed() -> None:
        if failure := command.failure(root):
            raise RuntimeError(f"{command.job.name}: undisturbed, it {failure}")

    return _prepare(root, command.job, undisturbed)


def run_command_trial(
    root: Path,
    prepared: Prepared,
    command: Command,
    moment: Callable[[], object],
    patience: float = 60,
) -> Tally:
    """Start a command, kill its first process when `moment` returns, and run it again.

    Processes that the command had started must end by themselves, within `patience` seconds.
    """
    job, tally = prepared.job, Tally(trials=1)
    reset(root, job)
    ended, orphans = _killed_at(moment, command.start(root), patience)
    tally.runs["kill of a command", ended] += 1
    wrong = ["processes that it had started live on"] if orphans else []
    wrong += not_intact(root, prepared, may_be_aside=True)
    if failure := command.failure(root):
        wrong.append(f"the run after it {failure}")
    elif differ := differences(prepared.after, state(root, job.volatile)):
        wrong.append(f"the run after it ends in another state: {differ}")
    tally.violations += [Violation(job.name, "kill of a command", "", text) for text in wrong]
    _count_rows(root, prepared, tally)
    return tally


def _killed_at(
    moment: Callable[[], object], process: "subprocess.Popen[bytes]", patience: float
) -> tuple[str, bool]:
    """Kill a command: how it ended, and whether processes that it had started outlived it."""
    with process:
        moment()
        process.kill()
    ended = "killed" if process.returncode == -signal.SIGKILL else f"exit {process.returncode}"
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return ended, False
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    return ended, True


def seconds_of_work(root: Path, command: Command) -> float:
    """Return how long a command works in its folder when it is left alone."""
    reset(root, command.job)
    with command.start(root):
        _wait_for_work(root)
        started = time.monotonic()
    return time.monotonic() - started


def amid_work(root: Path, seconds: float) -> Callable[[], None]:
    """Return a function that waits until a command begins its work in `root`, and then longer."""

    def moment() -> None:
        _wait_for_work(root)
        time.sleep(seconds)

    return moment


def _wait_for_work(root: Path, patience: float = 60) -> None:
    """Wait until there is something hidden in a folder, as there is while a result is made."""
    deadline = time.monotonic() + patience
    while not any(root.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.01)


def reset(root: Path, job: Job) -> None:
    """Make a root what it is before a job."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(job.template, root)


def _wrong(root: Path, prepared: Prepared, fault: Fault, outcome: Outcome) -> list[str]:
    """Return what does not hold after a run that met a fault."""
    if outcome.ended == "returned":
        differ = differences(prepared.after, state(root, prepared.job.volatile))
        return [f"silent success: it returned, and {differ}"] if differ else []
    killed = outcome.ended == "killed" and fault.action in KILLS
    refused = outcome.ended == "raised" and ACCEPTED & set(outcome.error["classes"])
    wrong = [] if killed or (refused and outcome.struck) else [f"it {outcome}"]
    # Where the disk refuses everything, nothing can be undone: like a kill.
    may_be_aside = killed or fault.action == FAIL_ON
    return wrong + not_intact(root, prepared, may_be_aside)


def not_intact(root: Path, prepared: Prepared, may_be_aside: bool) -> list[str]:
    """Return what is wrong with the target, which must be as before or as it was to be made.

    It may be moved aside, whole, where nothing could be done about it any more.
    """
    found, target = state(root, prepared.job.volatile), prepared.job.target
    if part(found, target) in (prepared.before, prepared.made):
        return []
    hidden = f".{target}.old"
    aside = {name.replace(hidden, target, 1): what for name, what in part(found, hidden).items()}
    if may_be_aside and not part(found, target) and aside == prepared.before:
        return []
    return [f"{target} is not intact: {differences(prepared.before, part(found, target))}"]


def differences(wanted: State, found: State) -> str:
    """Return the first few names that are missing, added or different; "" for equal states."""
    names = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    said = [f"{name} {_difference(wanted.get(name), found.get(name))}" for name in names]
    return "; ".join(said[:4]) + (f"; and {len(said) - 4} more" if len(said) > 4 else "")


def _difference(wanted: str | None, found: str | None) -> str:
    if found is None:
        return "is missing"
    return "is left over" if wanted is None else "differs"


def _count_rows(root: Path, prepared: Prepared, tally: Tally) -> None:
    found = Counter(prepared.job.rows(root / prepared.job.target))
    tally.lost += (prepared.rows - found).total()
    tally.duplicate += (found - prepared.rows).total()


def on_each(
    servers: Sequence[Server], work: Callable[[Server, Item], Result], items: Iterable[Item]
) -> list[Result]:
    """Do a piece of work for each item, on whichever server is free; results in their order."""
    free: SimpleQueue[Server] = SimpleQueue()
    for server in servers:
        free.put(server)

    def one(item: Item) -> Result:
        server = free.get()
        try:
            return work(server, item)
        finally:
            free.put(server)

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(one, items))
