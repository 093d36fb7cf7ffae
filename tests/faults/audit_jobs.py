"""More jobs of the harness: a history that is written to, a release, and a whole audit.

A history and what a night leaves are changed where they stand, and hold times. So those jobs end
with a file `told.json` of what is there then, which is what they make.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jobs
from audit_kills import nights
from client import Server
from jobs import INDEX, REPORT, RUN, SIDE
from trials import Job

from deepssim_scan.audit import history as history_of
from deepssim_scan.audit import night as night_of
from deepssim_scan.audit.config.audit import read_config
from deepssim_scan.audit.findings import Finding
from deepssim_scan.audit.history import NAME, History, SetOfNight
from deepssim_scan.audit.outputs import JSON, JUNIT
from deepssim_scan.audit.release.release import ReleaseConfig, release
from deepssim_scan.audit.trend import TREND
from deepssim_scan.jobs import query as query_job
from deepssim_scan.storage.records import write_json

AUDITS, RELEASE, TOLD, CONFIG = Path("audits"), Path("release"), Path("told.json"), "audit.toml"
SETS = ("first", "second")
ANYTHING = r"(?s).+"
VOLATILE = dict.fromkeys((NAME, JSON, JUNIT, TREND, *(f"{s}.html" for s in SETS)), ANYTHING)
"""What holds times, or depends on how often it was written to: only its name and mode count."""

TEXT = """\
[training]
images = "{inputs}/training"
index = "index"
adapt = "never"
[[synthetic]]
name = "first"
images = "{inputs}/first"
[[synthetic]]
name = "second"
images = "{inputs}/second"
[policy]
canaries = 20
min_canary_recall = 0.0
[history]
path = "audits"
"""


def take_down(night: int = 2) -> None:
    """Take down a night of two sets, unless it is there, and what a reader decided."""
    history_of.now = lambda: "2026-01-02T03:04:05+00:00"
    with History(AUDITS, begin=True) as history:
        if not any(each.number == night and each.finished for each in history.nights()):
            begun, _ = history.begin()
            for name in SETS:
                history.put(begun, _found(name))
            history.finish(replace(begun, finished=history_of.now(), state="failed"))
        history.decide(f"finding {night}", "a reader", "copy", blinded=True)
    write_json(TOLD, {"rows": taken_down(TOLD)})


def _found(name: str) -> SetOfNight:
    findings = [
        Finding(f"finding {n}", "new", "", f"{n}.png", f"p{n}.png", "", 0.9, None, None)
        for n in range(200)
    ]
    return SetOfNight(name, {"counts": 1}, {"duplicates": 20}, [1, 2, 3], findings)


def taken_down(told: Path) -> list[str]:
    """Return all that the history beside a file says, in SQL."""
    path = told.with_name(str(AUDITS)) / NAME
    if not path.is_file():
        return []
    with closing(sqlite3.connect(path)) as database:
        return [*map(str, database.execute("PRAGMA integrity_check")), *database.iterdump()]


def release_cleared() -> None:
    """Release what the report that is there has cleared."""
    release(REPORT, RELEASE, ReleaseConfig(incomplete=True), RUN)


def released(folder: Path) -> list[str]:
    """Return the names of the files of a release."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def audit(night: int = 2) -> None:
    """Audit two sets, unless there are so many nights."""
    with History(AUDITS, begin=True) as history:
        finished = [each for each in history.nights() if each.finished]
    if len(finished) < night:
        night_of.audit(read_config(Path(CONFIG)), RUN)
    write_json(TOLD, {"nights": nights(Path())})


def audited(told: Path) -> list[str]:
    """Return what the history beside a file says, and the names of the files of audits."""
    folder = told.with_name(str(AUDITS))
    if not (folder / NAME).is_file():
        return []
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return [*map(str, nights(folder.parent)), *(name for name in files if "/." not in name)]


def quick_jobs(server: Server, inputs: Path, templates: Path) -> list[Job]:
    """Return the history and the release, each with what is in its folder before.

    `real_jobs` has made the index.
    """
    (templates / "history").mkdir()
    _first_night(server, "take_down", templates / "history")
    _make_report(inputs, templates)
    return [
        _job("history", "take_down", templates, TOLD, taken_down),
        _job("release", "release_cleared", templates, RELEASE, released),
    ]


def audit_job(server: Server, inputs: Path, templates: Path) -> Job:
    """Return the audit, with the night before in its folder."""
    _make_audit(server, inputs / "audited", templates / "audit")
    return _job("audit", "audit", templates, TOLD, audited)


def _job(
    name: str, function: str, templates: Path, target: Path, rows: Callable[[Path], Iterable[str]]
) -> Job:
    volatile = jobs.VOLATILE | VOLATILE
    return Job(
        name,
        f"audit_jobs:{function}",
        templates / name,
        str(target),
        rows,
        volatile=volatile,
        may_stay=r"^audits/.*\.(lock|old)(/|$)" if name == "audit" else None,
    )


def _first_night(server: Server, function: str, folder: Path) -> None:
    """Let a job do what it did the night before, in the folder."""
    shutil.rmtree(server.root, ignore_errors=True)
    shutil.copytree(folder, server.root)
    outcome = server.run(f"audit_jobs:{function}", {"night": 1})
    if outcome.ended != "returned":
        raise RuntimeError(f"{function}: the first night {outcome}\n{outcome.error}")
    shutil.rmtree(folder)
    shutil.copytree(server.root, folder)


def _make_report(inputs: Path, templates: Path) -> None:
    """Make the report of a release: of images in folders."""
    folder = templates / "release"
    shutil.copytree(templates / "query" / INDEX, folder / INDEX)
    for number in range(6):
        jobs.save(200 + number, inputs / "cleared" / f"a{number % 2}" / "b" / f"{number}.png")
    query_job.query(inputs / "cleared", folder / INDEX, folder / REPORT, jobs.top(3), RUN)


def _make_audit(server: Server, inputs: Path, folder: Path) -> None:
    """Make what was audited once, and the images of the next night."""
    for number in range(30):
        jobs.save(number, inputs / "training" / f"{number:02d}.png", 2 * SIDE)
    for number in range(8):
        jobs.save(100 + number, inputs / SETS[number % 2] / f"{number}.png", 2 * SIDE)
    folder.mkdir()
    (folder / CONFIG).write_text(TEXT.format(inputs=inputs))
    _first_night(server, "audit", folder)
    jobs.save(3, inputs / SETS[0] / "copy.png", 2 * SIDE)
    (inputs / SETS[1] / "1.png").unlink()
    (inputs / "training" / "05.png").unlink()
