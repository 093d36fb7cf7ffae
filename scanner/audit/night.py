"""One night: the index brought up to date, every synthetic set queried, compared, and decided.

audit.toml -> index -> queries -> findings of this night and the last -> quantities -> Audited

What is written:

    HISTORY/history.sqlite          every night, its sets and findings, and readers' decisions
    HISTORY/reports/NAME/           the report of the last query of each set
    HISTORY/nights/NUMBER/          what the night was decided to be, and a page of each set
    HISTORY/trend.html              all nights of all sets
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.audit.config.audit import AuditConfig, Synthetic
from deepssim_scan.audit.config.quantities import NOT_KNOWN, values_of
from deepssim_scan.audit.config.waivers import Waiver, read_waivers
from deepssim_scan.audit.drift import binned, drift
from deepssim_scan.audit.findings import GONE, asked_about, counts_of, findings_of, holding
from deepssim_scan.audit.history import NIGHTS, History, Night, SetOfNight, now
from deepssim_scan.audit.outputs import night_folder, write_outputs
from deepssim_scan.audit.policy import Decided, decide
from deepssim_scan.audit.trend import write_trend
from deepssim_scan.errors import ScanError, Unfinished
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.jobs.build_index import IndexResult, build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import CalibrateConfig, IndexConfig, QueryConfig
from deepssim_scan.jobs.identity import versions
from deepssim_scan.jobs.query import QueryResult, query
from deepssim_scan.matching.config import EvidenceConfig, PageConfig
from deepssim_scan.reporting.matches import of_best, read_counts
from deepssim_scan.storage.files import shown
from deepssim_scan.storage.layout import STORE
from deepssim_scan.storage.publish import locked
from deepssim_scan.store.store import Store

REPORTS = "reports"


@dataclass(frozen=True, slots=True)
class Audited:
    """A night that was decided: what was found of each set, and what could not be done.

    `gone` counts the training images that the last night had and this one has not, at least, and
    `left` are the findings that are gone and of which the training image is gone, too. `errors`
    says of a set why it could not be queried. `held` are findings whose waivers hold. `orphans` are
    waivers of findings that no set has, and `dropped` names sets that the last night had and the
    configuration has not.
    """

    night: Night
    went_on: bool
    index: IndexResult
    gone: int
    sets: list[SetOfNight]
    left: tuple[str, ...]
    errors: Mapping[str, str]
    held: Collection[str]
    orphans: tuple[Waiver, ...]
    dropped: tuple[str, ...]
    decided: Decided

    def as_json(self) -> dict[str, Any]:
        """Return what the file of the night holds, in values of JSON."""
        night, index, decided = self.night, self.index, self.decided
        sets = {
            each.name: {
                "quantities": each.quantities,
                "findings": [asdict(finding) for finding in each.findings],
                "fingerprints": each.summary["fingerprints"],
            }
            for each in self.sets
        }
        return {
            "night": night.number,
            "started": night.started,
            "finished": night.finished,
            "state": decided.state,
            "index": {
                "indexed": index.indexed,
                "rejected": index.rejected,
                "changes": index.changes and asdict(index.changes),
                "gone": self.gone,
            },
            "sets": sets,
            "training_image_gone": list(self.left),
            "errors": dict(self.errors),
            "no_longer_audited": list(self.dropped),
            "orphaned_waivers": [each.model_dump(mode="json") for each in self.orphans],
            "failed": [asdict(each) for each in decided.failed],
            "warned": [asdict(each) for each in decided.warned],
        }


def audit(config: AuditConfig, run: RunContext, *, rebuild: bool = False) -> Audited:
    """Audit all synthetic sets of a configuration, and take down what was found.

    What did not change is taken from the nights before, unless `rebuild` is true.

    Raises Busy when another audit of the same history runs, and what `build_index` raises. What is
    wrong with one synthetic set keeps no other from being audited.
    """
    waivers, folder = read_waivers(config.policy.waivers), config.history.path
    config.report.key()  # which is needed last: that it cannot be read is told first
    with locked(folder.resolve()), run.opened() as run, History(folder, begin=True) as history:
        night, went_on = history.begin()
        last = history.last_facts()
        holdout = _holdout(config, run)
        marks = _marks(config.training.index)
        index = _index(config, run, holdout, last.get("holdout"), rebuild=rebuild)
        gone = _gone(index, marks, last.get("indexed", 0))
        held = holding(waivers, datetime.now(UTC).date())
        known = {"holdout": holdout, "indexed": index.indexed}
        auditing = _Auditing(
            config, run, history, night, waivers, held, rebuild, index, gone, known
        )
        errors = {}
        for each in config.synthetic:
            try:
                auditing.audit(each)
            except ScanError as error:
                errors[each.name] = str(error)
        audited = auditing.finished(errors, went_on=went_on)
        names = [each.name for each in config.synthetic]
        history.forget(config.history.keep_days, names)
        _remove_forgotten(history, folder)
        write_trend(history)
    return audited


def _index(
    config: AuditConfig, run: RunContext, now: str | None, before: str | None, *, rebuild: bool
) -> IndexResult:
    """Bring the index up to date, and its calibration where hold-out images are given, or were.

    `now` and `before` tell which hold-out images there are, and which the last night had
    (`_holdout`).
    """
    training = config.training
    ingest = training.ingest(training.key())
    search = SearchConfig(training.index_type, training.recall)
    asked = IndexConfig(ingest=ingest, adapt=training.adapt, search=search, rebuild=rebuild)
    try:
        result = build_index(training.images, training.index, asked, run)
    except Unfinished:  # the configuration is another one now, and it decides
        result = build_index(training.images, training.index, replace(asked, restart=True), run)
    found = result.calibration
    by_holdout = found is not None and found.subjects == "hold-out"
    if found is not None and (now != before if by_holdout else now is not None):
        read = replace(ingest, selection=Selection())
        calibrate(training.index, CalibrateConfig(holdout=training.holdout, ingest=read), run)
    return result


def _remove_forgotten(history: History, folder: Path) -> None:
    """Remove what forgotten nights left, also of those that an earlier run could not remove."""
    *kept, last = (each.number for each in history.nights())
    for path in (folder / NIGHTS).iterdir():
        number = int(path.name) if path.name.isdecimal() else last
        if number < last and number not in kept and path == folder / night_folder(number):
            shutil.rmtree(path, ignore_errors=True)


def _marks(index: Path) -> NDArray[np.int64]:
    """Return numbers for the name and the content of each image of an index (N, 2)."""
    try:
        with Store.open(index / STORE) as store:
            images = ((each.key, (each.sha256, each.frame)) for each in store.embedded())
            marks = np.fromiter((hash(mark) for both in images for mark in both), np.int64)
    except ScanError:  # there is none yet, or `build_index` says what is wrong with it
        marks = np.empty(0, np.int64)
    return marks.reshape(-1, 2)


def _gone(index: IndexResult, marks: NDArray[np.int64], before: int) -> int:
    """Count the training images that are gone, at least; the last night had `before` in the index.

    `marks` are those of the images that the index had. One of which the name or the content is
    there is not gone. An index that was updated meanwhile, as by a night that was killed, tells of
    none. That it has fewer images is told then.
    """
    now = _marks(index.folder)
    there = np.isin(marks[:, 0], now[:, 0]) | np.isin(marks[:, 1], now[:, 1])
    return max(int(np.count_nonzero(~there)), before - index.indexed)


def _holdout(config: AuditConfig, run: RunContext) -> str | None:
    """Return a digest of the hold-out files, their sizes and times; None where there are none."""
    if config.training.holdout is None:
        return None
    files = list_images(config.training.holdout, Selection(), run).files
    return sha256(repr(tuple(files)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class _Auditing:
    """Audits the sets of a night, and puts what it finds into the history.

    `known` is what the next night is to know of the training set: images that arrive while this one
    runs are no part of it.
    """

    config: AuditConfig
    run: RunContext
    history: History
    night: Night
    waivers: Mapping[str, Waiver]
    held: Collection[str]
    rebuild: bool
    index: IndexResult
    gone: int
    known: Mapping[str, Any]

    def audit(self, asked: Synthetic) -> None:
        """Query a set, compare with the last night, and take down what was found."""
        result = self._query(asked)
        _, counts = read_counts(result.folder)
        last = self.history.last(asked.name, self.night)
        known = {each.key: each for each in last.findings if each.state != GONE} if last else {}
        matches = asked_about(result.folder, counts.flagged, self.held)
        found = findings_of(matches, known, self.waivers, self.held)
        states = counts_of(found, self.history.decisions(), self.config.policy.readers)
        scores = binned(of_best(result.folder, "score"))
        moved = drift(last.scores, scores) if last else 0.0
        values = values_of(result.summary, states, moved, self.gone)
        self.history.put(self.night, SetOfNight(asked.name, result.summary, values, scores, found))

    def _query(self, asked: Synthetic) -> QueryResult:
        policy, index = self.config.policy, self.config.training.index
        report = self._report(asked.name)
        how = QueryConfig(
            asked.ingest(b""),
            evidence=EvidenceConfig(min_recall=policy.min_recall),
            verdict=policy.verdict,
            canaries=policy.planted,
            page=PageConfig(pseudonyms=self.config.report.key()),
            rebuild=self.rebuild,
        )
        try:
            return query(asked.images, index, report, how, self.run)
        except Unfinished:  # the configuration is another one now, and it decides
            return query(asked.images, index, report, replace(how, restart=True), self.run)

    def _report(self, name: str) -> Path:
        return self.config.history.path / REPORTS / name

    def finished(self, errors: Mapping[str, str], went_on: bool) -> Audited:
        """Decide the night, and take down what it was decided to be."""
        sets = self.history.sets(self.night)
        values = {each.name: each.quantities for each in sets}
        unknown = dict.fromkeys(errors, NOT_KNOWN | {"training_gone": self.gone})
        decided = decide(self.config.policy, values | unknown)
        there = {each.key for found in sets for each in found.findings if each.state != GONE}
        there |= set(self.waivers) if errors else set()  # what was not queried may have them
        orphans = tuple(each for key, each in self.waivers.items() if key not in there)
        facts = self._facts(decided, errors)
        night = replace(self.night, finished=now(), state=decided.state, facts=facts)
        names = {each.name for each in self.config.synthetic}
        dropped = tuple(each for each in self.history.last_sets(night) if each not in names)
        index, gone, left, held = self.index, self.gone, self._left(sets), self.held
        audited = Audited(
            night, went_on, index, gone, sets, left, errors, held, orphans, dropped, decided
        )
        reports = {each.name: self._report(each.name) for each in sets}
        folder = self.config.history.path / night_folder(night.number)
        write_outputs(folder, reports, audited, self.history, self.config, self.run)
        self.history.finish(night)
        return audited

    def _left(self, sets: Collection[SetOfNight]) -> tuple[str, ...]:
        """Return the findings that are gone, and of which the training image is, too.

        The night may not know that training images are gone: a set may not have been queried when
        they went, or a night was killed after it had updated the index.
        """
        gone = [each for found in sets for each in found.findings if each.state == GONE]
        if not gone:
            return ()
        left = {each.training for each in gone}
        with Store.open(self.config.training.index / STORE) as store:
            left.difference_update(shown(each.name) for each in store.embedded())
        return tuple(each.key for each in gone if each.training in left)

    def _facts(self, decided: Decided, errors: Mapping[str, str]) -> dict[str, Any]:
        conditions = {"failed": decided.failed, "warned": decided.warned}
        told = {name: [asdict(each) for each in broken] for name, broken in conditions.items()}
        policy = self.config.policy
        asked = {"fail_if": [each.text for each in policy.fail_if], "readers": policy.readers}
        return {**told, **asked, **self.known, "versions": versions(), "errors": dict(errors)}
