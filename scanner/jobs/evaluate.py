"""Metrics against labelled pairs: each scores the pairs, and its figures are told.

    labelled.csv, two folders -> pairs.parquet, evaluation.json, a plot a metric

The metric "verdicts" is a query of the synthetic images, as a user makes it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from deepssim_scan.errors import InputError
from deepssim_scan.evaluation.agreement import Labels, figures, fitted, sklearn_metrics
from deepssim_scan.evaluation.images import Images, read_images
from deepssim_scan.evaluation.labelled import LABELS, Labelled, read_labelled, resolved
from deepssim_scan.evaluation.metrics import metric_of
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.identity import list_for_store, versions
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CANDIDATES, VerdictConfig
from deepssim_scan.matching.decision import Bounds
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.reporting.matches import judged_pairs
from deepssim_scan.reporting.plots import draw_labels
from deepssim_scan.storage.files import make_folder, replacing, shown
from deepssim_scan.storage.layout import INDEX_MANIFEST, STORE
from deepssim_scan.storage.parquet import writing
from deepssim_scan.storage.records import write_json
from deepssim_scan.store.store import Store

VERDICTS = "verdicts"
METRICS = ("deepssim", VERDICTS, "ssim", "registered-ssim", "correlation")
"""Those that need no file."""

EVALUATION, PAIRS = "evaluation.json", "pairs.parquet"
_VALIDATION = 0.5  # of the groups, where thresholds are fitted


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What is evaluated.

    `metrics` are names, or "name=FILE" of those of a network in a file. With `fit`, thresholds are
    fitted on the pairs of half of the training subjects, and all figures are of the others. `index`
    is the index of the training images that "verdicts" queries, made where there is none; None:
    one of the evaluation itself, which is brought up to date.
    """

    metrics: tuple[str, ...] = METRICS
    fit: bool = False
    index: Path | None = None
    ingest: IngestConfig = field(default_factory=IngestConfig)
    verdict: VerdictConfig = field(default_factory=lambda: VerdictConfig(top_k=CANDIDATES))

    def __post_init__(self) -> None:
        if not self.metrics:
            raise InputError("metrics must be one or more")
        if len(set(self.metrics)) < len(self.metrics):
            raise InputError(f"metrics must differ, found {', '.join(self.metrics)}")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The folder that was written, and the figures of each metric: with its own thresholds, fitted.

    Either is None where there are none.
    """

    folder: Path
    metrics: Mapping[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Return what evaluation.json holds."""
        return {"labels": list(LABELS), "metrics": dict(self.metrics), "versions": versions()}


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of all pairs (P,), and the labels that the metric's own rule gives, if any."""

    scores: NDArray[np.float64]
    bounds: Bounds | None
    predicted: Labels | None


def evaluate(
    pairs: Path,
    training: Path,
    synthetic: Path,
    out: Path,
    config: EvaluateConfig | None = None,
    run: RunContext | None = None,
) -> Evaluated:
    """Score labelled pairs by every metric, and write the figures into the folder `out`.

    Raises InputMissing or InputError for pairs, images or metrics that cannot be used,
    DependencyMissing without what a metric needs, and what `build_index` and `query` raise.
    """
    config, run = config or EvaluateConfig(), run or RunContext()
    sklearn_metrics()  # which is needed last: its absence is told first
    labelled = read_labelled(pairs)
    chosen = _chosen(config.metrics)
    make_folder(out)
    with run.opened() as run:
        sides = _Sides(labelled, training, synthetic, config.ingest, run)
        scored = {
            name: sides.scored_by_query(out, config)
            if name == VERDICTS
            else sides.scored(chosen[name])
            for name in _names(config.metrics, chosen)
        }
        groups = sides.groups()
    tested = _tested(groups) if config.fit else np.ones(len(groups), bool)
    found = {
        name: _figures(labelled.labels, each, groups, tested, fit=config.fit)
        for name, each in scored.items()
    }
    _write_pairs(out / PAIRS, labelled, scored, tested)
    for name, each in scored.items():
        _draw(out, name, labelled.labels[tested], each.scores[tested], found[name]["thresholds"])
    result = Evaluated(out, found)
    write_json(out / EVALUATION, result.as_json())
    return result


def _chosen(asked: Sequence[str]) -> dict[str, Any]:
    """Return the metrics but for verdicts by title: of two with the same, the name with the file.

    Raises what `metric_of` raises.
    """
    found = {text: metric_of(text) for text in asked if text != VERDICTS}
    titles = Counter(title for title, _ in found.values())
    return {
        title if titles[title] == 1 else text: metric for text, (title, metric) in found.items()
    }


def _names(asked: tuple[str, ...], chosen: Mapping[str, Any]) -> list[str]:
    """Return the titles of the metrics, in the order in which they were asked for."""
    titles = iter(chosen)
    return [VERDICTS if text == VERDICTS else next(titles) for text in asked]


@dataclass(slots=True)
class _Sides:
    """The images of both sides of labelled pairs, read once for every rule."""

    labelled: Labelled
    training: Path
    synthetic: Path
    ingest: IngestConfig
    run: RunContext
    _read: dict[Standardisation, tuple[Images, Images, NDArray[np.int64]]] = field(
        default_factory=dict
    )
    _listings: list[Listing] = field(default_factory=list)

    def scored(self, metric: Any) -> Scored:
        """Score the pairs by a metric."""
        training, synthetic, pairs = self._images(metric.standardisation)
        scores = metric.score(training.pixels, synthetic.pixels, pairs)
        predicted = None if metric.bounds is None else metric.bounds.judge(scores).astype(np.int64)
        return Scored(scores, metric.bounds, predicted)

    def scored_by_query(self, out: Path, config: EvaluateConfig) -> Scored:
        """Score the pairs by a query: its verdicts, and the decision statistic.

        A pair that is not among the candidates has the lowest statistic, and is different. So is
        one that is undecidable.
        """
        training, synthetic, pairs = self._images(RULE)
        index = config.index or out / "index"
        if config.index is None or not (index / INDEX_MANIFEST).is_file():
            build_index(self.training, index, IndexConfig(ingest=self.ingest), self.run)
        _check_index(index, training.names)
        how = QueryConfig(
            IngestConfig(read_options=self.ingest.read_options), verdict=config.verdict
        )
        result = query(self.synthetic, index, out / "report", how, self.run)
        if not result.complete:
            self.run.progress.warn(
                f"{result.folder}: the query is not complete, so its verdicts may miss copies. Its "
                "summary.json says why."
            )
        judged = {
            (training, synthetic): (verdict, statistic)
            for synthetic, training, verdict, statistic in judged_pairs(result.folder)
        }
        names = [(training.names[a], synthetic.names[b]) for a, b in pairs.tolist()]
        found = [judged.get(pair, ("different", np.nan)) for pair in names]
        statistics = np.array([statistic for _, statistic in found], np.float64)
        lowest = min((s for _, s in judged.values() if not np.isnan(s)), default=0.0)
        predicted = [LABELS.index(verdict) if verdict in LABELS else 0 for verdict, _ in found]
        return Scored(np.nan_to_num(statistics, nan=lowest), None, np.array(predicted, np.int64))

    def groups(self) -> Labels:
        """Return a number for whom the training image of each pair shows, or for the image."""
        training, _, pairs = self._images(RULE)
        whose = [
            subject or name for subject, name in zip(training.subjects, training.names, strict=True)
        ]
        return np.unique(whose, return_inverse=True)[1][pairs[:, 0]].astype(np.int64)

    def _images(self, rule: Standardisation) -> tuple[Images, Images, NDArray[np.int64]]:
        if rule not in self._read:
            wanted = (
                (self.labelled.training, self.training),
                (self.labelled.synthetic, self.synthetic),
            )
            if not self._listings:
                self._listings = [
                    list_for_store(folder, self.ingest, self.run) for _, folder in wanted
                ]
            sides = [
                read_images(listing, names, rule, self.ingest, self.run)
                for (names, _), listing in zip(wanted, self._listings, strict=True)
            ]
            numbers = [
                resolved(names, side.names, folder)
                for (names, folder), side in zip(wanted, sides, strict=True)
            ]
            self._read[rule] = sides[0], sides[1], np.stack(numbers, 1)
        return self._read[rule]


def _check_index(index: Path, names: Sequence[str]) -> None:
    """Raise InputError where an index has not all of the training images of the pairs."""
    with Store.open(index / STORE) as store:
        there = {shown(record.name) for record in store.embedded()}
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(
            f"{index}: holds {len(names) - len(missing):,} of the {len(names):,} training images "
            f"of the pairs; {missing[0]} is not among them. Give the index of these images."
        )


def _tested(groups: Labels) -> NDArray[np.bool_]:
    """Return which pairs are not of the validation part: (P,)."""
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(0).permutation(count)
    return np.isin(groups, drawn[int(count * _VALIDATION) :])


def _figures(
    labels: Labels, scored: Scored, groups: Labels, tested: NDArray[np.bool_], *, fit: bool
) -> dict[str, Any]:
    """Return the figures with a metric's own rule, and with fitted thresholds where asked for."""
    own = None if scored.predicted is None else scored.predicted[tested]
    of = labels[tested], scored.scores[tested]
    told: dict[str, Any] = {"own": figures(*of, own, groups[tested]), "fitted": None}
    told["thresholds"] = {"own": _two(scored.bounds), "fitted": None}
    if fit:
        bounds = fitted(labels[~tested], scored.scores[~tested])
        told["fitted"] = figures(*of, bounds.judge(of[1]).astype(np.int64), groups[tested])
        told["thresholds"]["fitted"] = _two(bounds)
    return told


def _two(bounds: Bounds | None) -> list[float] | None:
    return None if bounds is None else [bounds.similar, bounds.duplicate]


def _write_pairs(
    path: Path, labelled: Labelled, scored: Mapping[str, Scored], tested: NDArray[np.bool_]
) -> None:
    """Write the pairs with the score that each metric gives them."""
    names = [LABELS[label] for label in labelled.labels.tolist()]
    columns: dict[str, Any] = {
        "training": pa.array(labelled.training),
        "synthetic": pa.array(labelled.synthetic),
        "label": pa.array(names),
        "tested": pa.array(tested),
    }
    for name, each in scored.items():
        columns[name] = pa.array(each.scores)
        if each.predicted is not None:
            columns[f"{name}, label"] = pa.array([LABELS[n] for n in each.predicted.tolist()])
    table = pa.table(columns)
    with writing(path, table.schema) as out:
        out.write_table(table)


def _draw(
    out: Path,
    name: str,
    labels: Labels,
    scores: NDArray[np.float64],
    thresholds: Mapping[str, list[float] | None],
) -> None:
    """Draw the scores of each label, as SVG and PNG."""
    by_label = {label: scores[labels == n].tolist() for n, label in enumerate(LABELS)}
    bounds = {f"thresholds, {how}": (each[0], each[1]) for how, each in thresholds.items() if each}
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    for kind in ("svg", "png"):
        with replacing(out / f"{stem}.{kind}") as file:
            file.write(draw_labels(by_label, bounds, kind))
