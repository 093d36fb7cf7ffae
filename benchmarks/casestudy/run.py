"""The case study: a generator that memorizes, and every metric against its samples.

For every modality: training images and other people's; a generator at three levels of duplication;
labels of its samples by search; an encoder trained on the training images, with an index that is
calibrated by a hold-out; the networks of other metrics; `deepssim-scan evaluate` on the samples as
they are, and augmented; and what each metric finds as a filter, at the score that other people's
images reach. What other seeds of generator and encoder change is told by `seeds.py`.

    make casestudy
    make casestudy IMAGES=folder-of-a-folder-a-person

Every step is kept, and a run that was stopped goes on. Results are in
benchmarks/results/casestudy_NAME.json, of which `write_docs.py` makes docs/case-study.md.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness
import steps
from filters import as_filters
from generator import REPEATS, SIZES, Pictures, generate, read
from label import DIFFERENT, DUPLICATE, rate_of, write_labels
from networks import write_efficientnet

from deepssim_scan.evaluation.agreement import macro_f1
from deepssim_scan.evaluation.labelled import LABELS
from deepssim_scan.matching.decision import Bounds

HERE = Path(__file__).parent
LABELLED = 200  # images of others, whose best pair is labelled, too
ENCODER = "trained.safetensors"
RANGES = (0.0, DIFFERENT), (DIFFERENT, DUPLICATE), (DUPLICATE, 1.0)
NEAR = 0.03  # of a threshold of the labels, in SSIM


def main() -> None:
    """Run what was not run, and write the results of each modality."""
    options = _options()
    names, whose = steps.named(options)
    for name in names:
        made = _case(name, options.work / name, options)
        harness.write(f"casestudy_{name}", options, {}, {}, modality=name, **whose, **made)


def _case(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one modality; return what docs are made of."""
    size = SIZES[options.size]
    training = steps.people_of(name, work, options)
    made = {}
    for level in REPEATS:
        out = work / level
        told = work / level / "generator.json"
        if not told.exists():
            generate(training, size, out, level, options.count, options.seed)
        made[level] = json.loads(told.read_text("utf-8"))
        steps.once(work / f"{level}.labelled", partial(steps.label_samples, work / level, training))
    steps.once(work / "others.labelled", lambda: _label_others(work, training))
    steps.once(work / "pairs.done", lambda: steps.gather(work, list(REPEATS), options.seed))
    index = _index(work, options)
    metrics = _metrics(work, index, options)
    evaluations = {how: _evaluate(work, how, index, metrics) for how in steps.HOW}
    return {
        "generators": made,
        "rates": {level: rate_of(work / level / "labelled.csv") for level in REPEATS},
        "others": rate_of(work / "others.csv"),
        "evaluations": evaluations,
        "clear": {how: _clear(work, how, found, metrics) for how, found in evaluations.items()},
        "errors": _errors(work, metrics),
        "filters": as_filters(work, metrics),
    }


def _label_others(work: Path, training: Pictures) -> None:
    """Label some images of other people, too: what the definition says where nothing is copied."""
    others = read(work / "others", training.pixels.shape[2])
    last = len(others.names) - 1
    rows = np.linspace(0, last, min(LABELLED, last + 1)).round().astype(int)
    names, pixels = [others.names[row] for row in rows], others.pixels[rows, 0]
    write_labels(pixels, names, training.pixels[:, 0], training.names, work / "others.csv")


def _index(work: Path, options: argparse.Namespace) -> Path:
    """Train an encoder on the training images, and calibrate their index by the hold-out."""
    steps.train_encoder(work, work / ENCODER, options.train_steps, options.seed)
    return steps.index_of(work, "--encoder", work / ENCODER)


def _metrics(work: Path, index: Path, options: argparse.Namespace) -> dict[str, str]:
    """Return what each metric is called in tables, and how `evaluate` is asked for it."""
    dar, features = work / "dar.pt", work.parent / "efficientnet.pt"
    program = [sys.executable, str(HERE / "train_dar.py"), "--steps", str(options.dar_steps)]
    if not dar.exists():
        asked = ["--training", str(work / "training"), "--out", str(dar)]
        subprocess.run([*program, *asked], check=True)
    if not features.exists():
        write_efficientnet(features)
    found = {
        "DeepSSIM, cosine, trained": f"deepssim={work / ENCODER}",
        "DeepSSIM, cosine, bundled": "deepssim",
        "ours: verdicts": "verdicts",
        "ours: registered SSIM": "registered-ssim",
        "SSCD": f"sscd={options.sscd}" if options.sscd else "",
        "Dar et al.": f"dar={dar}",
        "SemDeDup-like (EfficientNet-Lite0)": f"semdedup={features}",
        "SSIM": "ssim",
        "pixel correlation": "correlation",
    }
    return {name: asked for name, asked in found.items() if asked}


def _evaluate(work: Path, how: str, index: Path, metrics: dict[str, str]) -> dict[str, Any]:
    """Evaluate all metrics on the samples, as they are or augmented."""
    out = work / f"evaluation-{how}"
    sides = ["--training", work / "training", "--synthetic", work / how, "--index", index]
    asked = [part for each in metrics.values() for part in ("--metric", each)]
    all_of = ["evaluate", "--pairs", work / "labelled.csv", *sides, *asked, "--fit", "--out", out]
    steps.once(work / f"evaluation-{how}.done", lambda: steps.command(*all_of))
    found = json.loads((out / "evaluation.json").read_text("utf-8"))["metrics"]
    titles = {_title(asked): name for name, asked in metrics.items()}
    return {titles[title]: figures for title, figures in found.items()}


def _clear(
    work: Path, how: str, evaluation: dict[str, Any], metrics: dict[str, str]
) -> dict[str, Any]:
    """Return the macro F1 of each metric on the pairs whose SSIM is not near a threshold of labels.

    The thresholds of the metrics are those fitted on all pairs of the validation part.
    """
    pairs = pq.read_table(work / f"evaluation-{how}" / "pairs.parquet").to_pydict()
    values = _ssim(work)
    near = (np.abs(values[:, None] - [DIFFERENT, DUPLICATE]) < NEAR).any(1)
    tested = np.array(pairs["tested"])
    labels = np.array([LABELS.index(label) for label in pairs["label"]])
    told: dict[str, Any] = {"near": int((near & tested).sum()), "pairs": int(tested.sum())}
    kept = tested & ~near
    for name, asked in metrics.items():
        bounds = Bounds(*evaluation[name]["thresholds"]["fitted"])
        predicted = bounds.judge(np.array(pairs[_title(asked)])[kept])
        told[name] = macro_f1(labels[kept], predicted.astype(np.int64))
    return told


def _errors(work: Path, metrics: dict[str, str]) -> dict[str, Any]:
    """Return by how much cosines of samples as they are miss the SSIM of the labels, by its range.

    Of each range the mean and the standard deviation of the error.
    """
    pairs = pq.read_table(work / "evaluation-aligned" / "pairs.parquet").to_pydict()
    values, told = _ssim(work), dict[str, Any]()
    for name, asked in metrics.items():
        if asked.startswith("deepssim"):
            error = np.array(pairs[_title(asked)], float) - values
            inside = {f"{a:g} to {b:g}": (values > a) & (values <= b) for a, b in RANGES}
            told[name] = {
                of: [float(error[rows].mean()), float(error[rows].std())]
                for of, rows in inside.items()
            }
    return told


def _ssim(work: Path) -> NDArray[np.float64]:
    with (work / "labelled.csv").open(newline="", encoding="utf-8") as file:
        return np.array([float(row["ssim"]) for row in csv.DictReader(file)])


def _title(asked: str) -> str:
    """Return what `evaluate` calls a metric that is asked for so."""
    return asked if asked.startswith("deepssim") else asked.partition("=")[0]


def _options() -> argparse.Namespace:
    made = steps.options_of(__doc__, {"train_steps": 1500, "dar_steps": 300})
    made.add_argument("--sscd", type=Path, help="SSCD's network, in ONNX or TorchScript")
    return made.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
