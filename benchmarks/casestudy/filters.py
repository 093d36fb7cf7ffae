"""Metrics as filters: which generated near-duplicates each finds, at what false alarms.

samples labelled duplicate, other people's images -> sensitivity where other people are not flagged

An image's score is that of its best training image. The threshold is the score that a share of
other people's images passes. It is asked of copies that the generator made (after
arXiv:2510.01793), not of transformed originals. What a query flags is told beside it: the query
has the null of a hold-out, and is not told of these other people.
"""

import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from harness import wilson
from label import duplicates
from numpy.typing import NDArray
from steps import HOW

from deepssim_scan.evaluation.images import Images, read_images
from deepssim_scan.evaluation.metrics import Metric, metric_of
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.reporting.matches import judged_pairs

RATES = 0.001, 0.01
SIDES = "others", *HOW
VERDICTS, REGISTERED, HASH = "ours: verdicts", "ours: registered SSIM", "imagededup, PHash"
_OF_CANDIDATES = "verdicts", "registered-ssim"  # of the pairs that a query lists, not of all

Best = dict[str, float]
"""The score of each image, by name, with its best training image."""


def as_filters(work: Path, metrics: dict[str, str]) -> dict[str, Any]:
    """Return the sensitivity of every metric on aligned and on augmented samples.

    What is known is kept in filters.json, a metric at a time.
    """
    copies, path = duplicates(work / "labelled.csv"), work / "filters.json"
    told = json.loads(path.read_text("utf-8")) if path.exists() else {}
    ways = {
        name: (lambda asked=asked: {side: _by_score(work, asked, side) for side in SIDES})
        for name, asked in metrics.items()
        if asked not in _OF_CANDIDATES
    }
    if importlib.util.find_spec("imagededup"):
        ways[HASH] = lambda: {side: _by_hash(work, side) for side in SIDES}
    ways[VERDICTS] = lambda: {side: _by_statistic(_query(work, side)) for side in SIDES}
    ways[REGISTERED] = lambda: {side: _registered(work, side) for side in SIDES}
    for name, way in ways.items():
        if name not in told:
            told[name] = _shares(way(), copies)
            path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    told[VERDICTS] |= _flagged(work, copies)
    return told


def _shares(best: dict[str, Best], copies: set[str]) -> dict[str, Any]:
    """Return which share of the copies scores above what a share of other people's images does."""
    others = np.array(list(best["others"].values()))
    told: dict[str, Any] = {"others": len(others)}
    for how in HOW:
        for rate in RATES:
            bound = np.quantile(others, 1 - rate, method="higher")
            found = sum(bool(best[how].get(name, -np.inf) > bound) for name in copies)
            told[f"{how} at {rate:g}"] = share(found, len(copies))
    return told


def _read(work: Path, side: str, metric: Metric) -> Images:
    listing = list_images(work / side, Selection(), RunContext(workers=0))
    names = [item.path for item in listing.files]
    rule, run = metric.standardisation, RunContext("cpu", 0)
    return read_images(listing, names, rule, IngestConfig(), run)


def _by_score(work: Path, asked: str, side: str) -> Best:
    """Score the images of a side with all training images."""
    _, metric = metric_of(asked)
    training, images = _read(work, "training", metric), _read(work, side, metric)
    grid = np.stack(np.meshgrid(*(np.arange(len(s.names)) for s in (training, images))), -1)
    scores = metric.score(training.pixels, images.pixels, grid.reshape(-1, 2))
    best: NDArray[np.float64] = scores.reshape(len(images.names), -1).max(1)
    return dict(zip(images.names, best.tolist(), strict=True))


def _by_statistic(report: Path) -> Best:
    """Return the decision statistic of each image's best match, as a query has it."""
    best: Best = defaultdict(lambda: -np.inf)
    for synthetic, _, _, statistic in judged_pairs(report):
        best[synthetic] = max(best[synthetic], np.nan_to_num(statistic, nan=-np.inf))
    return dict(best)


def _registered(work: Path, side: str) -> Best:
    """Return the SSIM of each image with the best of the training images that a query lists."""
    _, metric = metric_of("registered-ssim")
    training, images = _read(work, "training", metric), _read(work, side, metric)
    ours, theirs = ({n: i for i, n in enumerate(s.names)} for s in (images, training))
    named = [(theirs[t], ours[s]) for s, t, _, _ in judged_pairs(_query(work, side))]
    pairs = np.array(named, np.int64)
    best: Best = defaultdict(lambda: -np.inf)
    scores = metric.score(training.pixels, images.pixels, pairs)
    for number, score in zip(pairs[:, 1].tolist(), scores.tolist(), strict=True):
        best[images.names[number]] = max(best[images.names[number]], score)
    return dict(best)


def _by_hash(work: Path, side: str) -> Best:
    """Return minus the least Hamming distance of imagededup's hashes."""
    from imagededup.methods import PHash

    theirs, ours = (
        PHash(verbose=False).encode_images(image_dir=str(work / folder), recursive=True)
        for folder in ("training", side)
    )
    codes = [int(code, 16) for code in theirs.values()]
    return {
        name: -float(min((int(code, 16) ^ other).bit_count() for other in codes))
        for name, code in ours.items()
    }


def _flagged(work: Path, copies: set[str]) -> dict[str, Any]:
    """Return how many of the copies, and of other people's images, a query flags."""
    told: dict[str, Any] = {}
    for side in SIDES:
        report = _query(work, side)
        flagged = {s for s, _, verdict, _ in judged_pairs(report) if verdict == "duplicate"}
        summary = json.loads((report / "summary.json").read_text("utf-8"))
        told["false_alarm"] = summary["calibration"]["false_alarm"]
        of = copies if side in HOW else None
        count = len(copies) if side in HOW else summary["counts"]["judged"]
        told[f"{side} flagged"] = share(len(flagged if of is None else flagged & of), count)
    return told


def _query(work: Path, side: str) -> Path:
    """Query the images of a side with defaults, unless that is done; return the report."""
    report = work / f"report-{side}"
    if not report.exists():
        program = Path(sys.executable).with_name("deepssim-scan")
        sides = ["--synthetic", work / side, "--index", work / "index", "--report", report]
        command = [program, "query", *sides, "--canaries", 0]
        subprocess.run([str(each) for each in command], check=True, stdout=subprocess.DEVNULL)
    return report


def share(hits: int, count: int) -> dict[str, Any]:
    """Return a share with Wilson's 95 % interval."""
    low, high = wilson(hits, count) if count else (0.0, 1.0)
    return {"found": hits, "of": count, "low": low, "high": high}
