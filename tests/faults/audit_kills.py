"""Audits that are killed at random moments, and run again: for docs/reliability.md.

An audit of a changed set is run undisturbed. Then it is killed, over and over, each time from the
state before it, and run again. After each the history must be whole: the night before as it was,
one night more, with the findings of the undisturbed one, and no night left running. Exits with 1
when one was not.

    python tests/faults/audit_kills.py
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import harness
from harness import Spread, console
from PIL import Image

from deepssim_scan.audit.history import NAME, History

CONFIG = """\
[training]
images = "training"
index = "index"
adapt = "never"
[[synthetic]]
name = "first"
images = "first"
[[synthetic]]
name = "second"
images = "second"
[policy]
fail_if = ["duplicates > 0"]
canaries = 20
min_canary_recall = 0.0
[history]
path = "audits"
"""


def main() -> int:
    """Kill as often as asked for, write benchmarks/results/audit_kills.json."""
    options = harness.parser(__doc__, {"kills": 100, "training": 60, "synthetic": 12}).parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        taken, problems = trials(work, options.kills, options.training, options.synthetic)
    for text in problems:
        console.print(text)
    measured = {"an audit that was killed, and the one after it": Spread.of(taken, "s")}
    told = {"kills": options.kills, "problems": len(problems)}
    harness.write("audit_kills", options, measured, {}, **told)
    console.print(f"{options.kills} kills, {len(problems)} problems")
    return int(bool(problems))


def trials(work: Path, kills: int, training: int, synthetic: int) -> tuple[list[float], list[str]]:
    """Return the seconds of each trial, and what was not as it must be."""
    root, kept = work / "root", work / "kept"
    make(root, training, synthetic)
    shutil.copytree(root, kept)
    started = time.monotonic()
    audit(root)
    seconds, wanted = time.monotonic() - started, nights(root)
    chosen, taken, problems = random.Random(0), list[float](), list[str]()
    for number in range(kills):
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        started = time.monotonic()
        moment = chosen.uniform(0, seconds)
        kill(root, moment)
        whole = integrity(root)
        if not is_finished(root):
            audit(root)
        taken.append(time.monotonic() - started)
        if not whole or not integrity(root) or nights(root) != wanted:
            problems.append(f"kill {number}, after {moment:.2f} s: the history is another one")
    return taken, problems


def make(root: Path, training: int, synthetic: int) -> None:
    """Make a set that was audited once, and changed since."""
    root.mkdir()
    for number, (name, count) in enumerate(
        (("training", training), ("first", synthetic), ("second", synthetic))
    ):
        harness.write_images(root / name, count, 96, number)
    (root / "audit.toml").write_text(CONFIG)
    audit(root)
    image = Image.open(root / "training" / "000003.png")
    image.rotate(4).save(root / "first" / "copy.png")
    (root / "second" / "000001.png").unlink()
    (root / "training" / "000001.png").unlink()


def command(root: Path) -> subprocess.Popen[bytes]:
    """Start an audit, in a group of processes of its own."""
    program = str(Path(sys.executable).with_name("deepssim-scan"))
    return subprocess.Popen(
        [program, "audit"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def audit(root: Path) -> None:
    """Run an audit to its end; RuntimeError where it fails to run."""
    process = command(root)
    out, _ = process.communicate()
    if process.returncode not in (0, 3):
        raise RuntimeError(out.decode())


def kill(root: Path, seconds: float) -> None:
    """Kill an audit, with all of its processes, after so many seconds."""
    process = command(root)
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # it had ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def is_finished(root: Path) -> bool:
    """Tell whether the second night was finished before the kill."""
    with History(root / "audits") as history:
        found = history.nights()
    return len(found) == 2 and found[1].finished is not None


def integrity(root: Path) -> bool:
    """Tell whether SQLite finds the history whole."""
    with closing(sqlite3.connect(root / "audits" / NAME)) as database:
        return bool(database.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def nights(root: Path) -> list[dict[str, Any]]:
    """Return what the history says, but for times, and what the files of its nights are."""
    with History(root / "audits") as history:
        found = [
            {
                "night": night.number,
                "state": night.state,
                "sets": [
                    {"name": each.name, "quantities": each.quantities, "scores": each.scores}
                    | {"findings": [asdict(finding) for finding in each.findings]}
                    for each in history.sets(night)
                ],
            }
            for night in history.nights()
        ]
    folders = sorted(
        str(path.relative_to(root)) for path in (root / "audits" / "nights").rglob("*")
    )
    return [*found, {"files": folders}]


if __name__ == "__main__":
    sys.exit(main())
