"""What a night leaves: for programs night.json and junit.xml, for people a page a synthetic set.

Audited, the nights before -> HISTORY/nights/000012/
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deepssim_scan.audit.config.audit import AuditConfig
from deepssim_scan.audit.findings import GONE, HOLDS, asked_about
from deepssim_scan.audit.history import NIGHTS, History, SetOfNight
from deepssim_scan.audit.policy import Broken
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.drawing import drawing
from deepssim_scan.jobs.query.page import PICTURED
from deepssim_scan.reporting.distributions import Distributions
from deepssim_scan.reporting.html.page import Content, Night, page
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.reporting.partial import read_partial
from deepssim_scan.reporting.pictures import Pictures
from deepssim_scan.reporting.subjects import read_subjects
from deepssim_scan.reporting.volumes import read_volumes
from deepssim_scan.storage.files import make_folder, replacing
from deepssim_scan.storage.layout import PLOT
from deepssim_scan.storage.records import write_json

if TYPE_CHECKING:
    from deepssim_scan.audit.night import Audited

JSON, JUNIT = "night.json", "junit.xml"


def night_folder(number: int) -> str:
    """Return the folder of what a night leaves, from that of the history."""
    return f"{NIGHTS}/{number:06d}"


def write_outputs(
    folder: Path,
    reports: Mapping[str, Path],
    audited: "Audited",
    history: History,
    config: AuditConfig,
    run: RunContext,
) -> None:
    """Write what a night leaves into its folder; `reports` has the report of each of its sets."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed night
    make_folder(folder, 0o700)
    for each in audited.sets:
        text = _page(each, reports[each.name], audited, history, config, run)
        with replacing(folder / f"{each.name}.html") as file:
            file.write(text.encode("utf-8"))
    with replacing(folder / JUNIT) as file:
        file.write(junit(audited, [each.text for each in config.policy.fail_if]))
    write_json(folder / JSON, audited.as_json())


def junit(audited: "Audited", conditions: Sequence[str]) -> bytes:
    """Return JUnit XML: a suite a set, a case for each condition that would fail the night.

    A set that could not be queried is an error. A set that is not complete is a failure, and so is
    a condition that holds.
    """
    root = Element("testsuites", name="deepssim-scan audit")
    broken = {(each.name, each.condition): each for each in audited.decided.failed}
    complete = {each.name: each.quantities["complete"] is True for each in audited.sets}
    for name in [*complete, *audited.errors]:
        failed = [broken[name, each] for each in conditions if (name, each) in broken]
        error = audited.errors.get(name)
        suite = SubElement(
            root,
            "testsuite",
            name=name,
            tests=str(len(conditions) + 2),
            failures=str(len(failed) + (not complete.get(name, True))),
            errors=str(int(error is not None)),
            timestamp=audited.night.started,
        )
        case = SubElement(suite, "testcase", classname=name, name="queried")
        if error is not None:
            SubElement(case, "error", message=_text(error))
        case = SubElement(suite, "testcase", classname=name, name="complete")
        if not complete.get(name, True):
            SubElement(case, "failure", message="something was not looked at")
        for condition in conditions:
            case = SubElement(suite, "testcase", classname=name, name=_text(condition))
            if (name, condition) in broken:
                SubElement(case, "failure", message=_text(told(broken[name, condition])))
    indent(root)
    return bytes(tostring(root, "utf-8", xml_declaration=True)) + b"\n"


def told(broken: Broken) -> str:
    """Say what is wrong with a condition: the set, the condition, and the values it names."""
    if not broken.known:
        return f"{broken.name}: whether {broken.condition!r} holds cannot be told"
    values = ", ".join(f"{name} = {_number(value)}" for name, value in broken.values.items())
    return f"{broken.name}: {broken.condition} ({values})"


def _number(value: float | bool | None) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else f"{value:g}"


def _text(text: str) -> str:
    """Return a text without the characters that XML cannot hold."""
    return "".join(each if each.isprintable() else " " for each in text)


def _page(
    found: SetOfNight,
    report: Path,
    audited: "Audited",
    history: History,
    config: AuditConfig,
    run: RunContext,
) -> str:
    """Return the page of a set: that of its query, with what the nights say."""
    _, counts = read_counts(report)
    flagged = asked_about(report, counts.flagged, audited.held)
    content = Content(
        f"{found.name}, night {audited.night.number}",
        found.summary,
        flagged,
        read_subjects(report),
        read_volumes(report),
        read_partial(report),
        Distributions.read(report),
        (report / PLOT).read_bytes(),
        _pictures(flagged, report, config, run) if config.report.thumbnails else (),
        _night(found, audited, history),
    )
    key = config.report.key()
    return page(content.renamed(key) if key else content)


def _pictures(
    flagged: Sequence[Match], report: Path, config: AuditConfig, run: RunContext
) -> list[Pictures | None]:
    with drawing(report, config.training.index, run) as draw:
        return draw(flagged[:PICTURED])


def _night(found: SetOfNight, audited: "Audited", history: History) -> Night:
    """Return what the nights say of a set: conditions, states of findings, and the trend."""
    decided = audited.decided
    lines = [
        (tone, told(each))
        for tone, broken in (("bad", decided.failed), ("unsure", decided.warned))
        for each in broken
        if each.name == found.name
    ]
    states = {
        each.key: "waived" if each.waiver == HOLDS else f"{each.state} {each.waiver}".strip()
        for each in found.findings
        if each.state != GONE
    }
    gone = [each.key for each in found.findings if each.state == GONE]
    trend = {
        night.number: float(quantities[found.name]["duplicates"] or 0)
        for night in history.nights()
        if found.name in (quantities := history.quantities(night))
    }
    return Night(lines, states, gone, trend)
