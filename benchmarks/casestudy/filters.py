"""Metrics as filters: which generated near-duplicates each finds, at what false alarms.

samples labelled duplicate, other people's images -> sensitivity where other people are not flagged

An image's score is that of its best training image. The threshold is the score that a share of
other people's images passes. It is asked of copies that the generator made (after
arXiv:2510.01793), not of transformed originals.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import wilson
from numpy.typing import NDArray

from deepssim_scan.evaluation.images import read_images
from deepssim_scan.evaluation.metrics import metric_of
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.reporting.matches import read_counts

RATES = 0.001, 0.01
_SLOW = ("verdicts", "registered-ssim")  # not scored with all training images


def as_filters(work: Path, metrics: dict[str, str]) -> dict[str, Any]:
    """Return the sensitivity of every metric on aligned and on augmented samples.

    What is known is kept in filters.json, a metric at a time.
    """
    copies, path = _copies(work), work / "filters.json"
    told = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name, asked in metrics.items():
        if name not in told and asked not in _SLOW:
            told[name] = _by_score(work, asked, copies)
            path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    told["ours: verdicts"] = _by_query(work, copies)
    return told


def _copies(work: Path) -> set[str]:
    """Return the samples whose best pair is a duplicate."""
    with (work / "labelled.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "best"]
    return {row["synthetic"] for row in rows if row["label"] == "duplicate"}


def _by_score(work: Path, asked: str, copies: set[str]) -> dict[str, Any]:
    """Return what a metric finds by the score of the best training image."""
    _, metric = metric_of(asked)
    sides = {}
    for name in ("training", "others", "aligned", "augmented"):
        listing = list_images(work / name, Selection(), RunContext(workers=0))
        names = [item.path for item in listing.files]
        run = RunContext("cpu", 0)
        sides[name] = read_images(listing, names, metric.standardisation, IngestConfig(), run)
    best = {
        name: _best(metric, sides["training"].pixels, sides[name].pixels)
        for name in ("others", "aligned", "augmented")
    }
    told: dict[str, Any] = {"others": len(best["others"])}
    for how in ("aligned", "augmented"):
        scores = best[how][[name in copies for name in sides[how].names]]
        for rate in RATES:
            bound = np.quantile(best["others"], 1 - rate, method="higher")
            told[f"{how} at {rate:g}"] = _share(int((scores > bound).sum()), len(scores))
    return told


def _best(metric: Any, training: Any, images: Any) -> NDArray[np.float64]:
    """Return the score of each image with its best training image: (M,)."""
    grid = np.stack(np.meshgrid(np.arange(len(training)), np.arange(len(images))), -1)
    scores = metric.score(training, images, grid.reshape(-1, 2))
    return np.asarray(scores.reshape(len(images), -1).max(1))


def _by_query(work: Path, copies: set[str]) -> dict[str, Any]:
    """Return what queries flag at the rate that they are asked for, and how many others."""
    told: dict[str, Any] = {}
    for rate in RATES:
        flagged = {}
        for side in ("others", "aligned", "augmented"):
            report = work / f"report-{side}-{rate:g}"
            _query(work, side, report, rate)
            _, counts = read_counts(report)
            flagged[side] = {match.synthetic for match in counts.flagged}
        summary = json.loads((work / f"report-others-{rate:g}" / "summary.json").read_text())
        told["others"] = summary["counts"]["judged"]
        told[f"others flagged at {rate:g}"] = _share(len(flagged["others"]), told["others"])
        for how in ("aligned", "augmented"):
            told[f"{how} at {rate:g}"] = _share(len(flagged[how] & copies), len(copies))
    return told


def _query(work: Path, side: str, report: Path, rate: float) -> None:
    program = Path(sys.executable).with_name("deepssim-scan")
    sides = ["--synthetic", work / side, "--index", work / "index", "--report", report]
    command = [program, "query", *sides, "--false-alarm", rate, "--canaries", 0]
    subprocess.run([str(each) for each in command], check=True, stdout=subprocess.DEVNULL)


def _share(hits: int, count: int) -> dict[str, Any]:
    """Return a share with Wilson's 95 % interval."""
    low, high = wilson(hits, count) if count else (0.0, 1.0)
    return {"found": hits, "of": count, "low": low, "high": high}
