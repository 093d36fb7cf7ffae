"""The case study: a generator that memorizes, and every metric against its samples.

For every modality: training images and other people's; a generator at three levels of duplication;
labels of its samples by search; an encoder trained on the training images, with an index that is
calibrated by a hold-out; the networks of other metrics; `deepssim-scan evaluate` on the samples as
they are, and augmented; what each metric finds as a filter, at the score that other people's images
reach; and how much of it another seed of the encoder or of the generator changes.

    make casestudy
    make casestudy IMAGES=folder-of-a-folder-a-person

Every step is kept, and a run that was stopped goes on. Results are in
benchmarks/results/casestudy_NAME.json, of which `write_docs.py` makes docs/case-study.md.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness
from filters import as_filters
from generator import REPEATS, SIZES, Pictures, generate, read, write_images
from images import PSEUDO, write_pseudo, write_split
from label import DIFFERENT, DUPLICATE, rate_of, write_labels
from networks import write_efficientnet
from seeds import ENCODER, label_samples, over_seeds, run, train_encoder

from deepssim_scan.evaluation.agreement import macro_f1
from deepssim_scan.evaluation.labelled import LABELS
from deepssim_scan.matching.decision import Bounds

HERE = Path(__file__).parent
SUBJECTS, OTHERS = 40, 250  # pseudo-people of the training set; others, and of the hold-out
MOST = 10  # images of another real person
LABELLED = 200  # images of others, whose best pair is labelled, too
SIZES_OF = {
    "count": 200,
    "subjects": 40,
    "each": 4,
    "train_steps": 1500,
    "dar_steps": 300,
    "seed_steps": 300,
}
LARGEST_ANGLE, GAMMA = 10.0, 0.5
RANGES = (0.0, DIFFERENT), (DIFFERENT, DUPLICATE), (DUPLICATE, 1.0)
NEAR = 0.03  # of a threshold of the labels, in SSIM


def main() -> None:
    """Run what was not run, and write the results of each modality."""
    options = _options()
    for name in [options.images.name] if options.images else options.modalities:
        work = options.work / name
        made = _case(name, work, options)
        told = {"modality": name, "people": "real" if options.images else "pseudo-people"}
        harness.write(f"casestudy_{name}", options, {}, {}, **told, **made)


def _case(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one modality; return what docs are made of."""
    size = SIZES[options.size]
    _once(work / "images.done", lambda: _write_images(name, work, size.side, options))
    training = read(work / "training", size.side)
    made = {}
    for level in REPEATS:
        out = work / level
        told = work / level / "generator.json"
        if not told.exists():
            generate(training, size, out, level, options.count, options.seed)
        made[level] = json.loads(told.read_text("utf-8"))
        _once(work / f"{level}.labelled", partial(label_samples, work / level, training))
    _once(work / "others.labelled", lambda: _label_others(work, training))
    _once(work / "pairs.done", lambda: _gather(work, options.seed))
    index = _index(work, options)
    metrics = _metrics(work, index, options)
    evaluations = {how: _evaluate(work, how, index, metrics) for how in ("aligned", "augmented")}
    return {
        "generators": made,
        "rates": {level: rate_of(work / level / "labelled.csv") for level in REPEATS},
        "others": rate_of(work / "others.csv"),
        "evaluations": evaluations,
        "clear": {how: _clear(work, how, found, metrics) for how, found in evaluations.items()},
        "errors": _errors(work, metrics),
        "filters": as_filters(work, metrics),
        "seeds": over_seeds(work, training, size, options) if options.seeds else {},
    }


def _once(mark: Path, work: Callable[[], Any]) -> None:
    """Do some work, unless the file that marks its end is there."""
    if not mark.exists():
        work()
        mark.touch()


def _write_images(name: str, work: Path, side: int, options: argparse.Namespace) -> None:
    if options.images is None:
        write_pseudo(name, range(SUBJECTS), side, work / "training")
        write_pseudo(name, range(1000, 1000 + OTHERS), side, work / "others")
        write_pseudo(name, range(2000, 2000 + OTHERS), side, work / "holdout")
        return
    people = len(list(options.images.iterdir()))
    count = min(options.subjects, people // 2)
    middle = (count + people) // 2
    write_split(options.images, range(count), side, work / "training", options.each)
    write_split(options.images, range(count, middle), side, work / "others", MOST)
    write_split(options.images, range(middle, people), side, work / "holdout", MOST)


def _label_others(work: Path, training: Pictures) -> None:
    """Label some images of other people, too: what the definition says where nothing is copied."""
    others = read(work / "others", training.pixels.shape[2])
    last = len(others.names) - 1
    rows = np.linspace(0, last, min(LABELLED, last + 1)).round().astype(int)
    names, pixels = [others.names[row] for row in rows], others.pixels[rows, 0]
    write_labels(pixels, names, training.pixels[:, 0], training.names, work / "others.csv")


def _gather(work: Path, seed: int) -> None:
    """Put the samples of all levels into one folder, as they are and augmented."""
    lines = [(work / level / "labelled.csv").read_text("utf-8").splitlines() for level in REPEATS]
    text = "\n".join([lines[0][0], *(row for part in lines for row in part[1:])])
    (work / "labelled.csv").write_text(text + "\n", "utf-8")
    for level in REPEATS:
        files = sorted((work / level / "samples").iterdir())
        shutil.copytree(work / level / "samples", work / "aligned" / level, dirs_exist_ok=True)
        pixels = np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])
        random = torch.Generator().manual_seed(seed)
        write_images(augmented(torch.from_numpy(pixels), random), work / "augmented" / level, "")


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Change images (N, S, S) as the paper's robustness test does, with probability 0.8 each.

    A flip on either axis, a rotation within 10 degrees, a gamma from 0.5 to 1.5.
    """
    count = len(images)
    draws = torch.rand(4, count, generator=random) < 0.8
    turned = images
    for number, axis in enumerate((1, 2)):
        turned = torch.where(draws[number][:, None, None], turned.flip(axis), turned)
    degrees = (torch.rand(count, generator=random) * 2 - 1) * LARGEST_ANGLE * draws[2]
    gamma = 1 + (torch.rand(count, generator=random) * 2 - 1) * GAMMA * draws[3]
    rotated = [
        np.asarray(Image.fromarray(image.numpy()).rotate(float(angle), Image.Resampling.BICUBIC))
        for image, angle in zip(turned, degrees, strict=True)
    ]
    return torch.from_numpy(np.stack(rotated)).clamp(0, 1) ** gamma[:, None, None]


def _index(work: Path, options: argparse.Namespace) -> Path:
    """Train an encoder on the training images, and calibrate their index by the hold-out."""
    index, encoder = work / "index", work / ENCODER
    train_encoder(work, encoder, options.train_steps, options.seed)
    sides = ["--training", work / "training", "--index", index]
    build = ["--encoder", encoder, "--adapt", "never", "--no-calibrate"]
    _once(work / "built.done", lambda: run("build-index", *sides, *build))
    calibrate = ["calibrate", *sides, "--holdout", work / "holdout"]
    _once(work / "index.done", lambda: run(*calibrate))
    return index


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
    command = ["evaluate", "--pairs", work / "labelled.csv", *sides, *asked, "--fit", "--out", out]
    _once(work / f"evaluation-{how}.done", lambda: run(*command))
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
    made = harness.parser(__doc__, SIZES_OF)
    made.add_argument(
        "--images", type=Path, help="folder of real people, a folder or file a person"
    )
    made.add_argument("--modalities", nargs="+", choices=PSEUDO, default=PSEUDO)
    made.add_argument("--size", choices=SIZES, default="small")
    made.add_argument("--seeds", type=int, default=3, help="of encoders and generators; or 0")
    made.add_argument("--sscd", type=Path, help="SSCD's network, in ONNX or TorchScript")
    made.add_argument("--work", type=Path, default=Path("casestudy"))
    return made.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
