"""How much other seeds change: of the encoder, and of the generator.

What a study says of one encoder and of one generator can be luck. Here encoders are trained again
with other seeds, and the generator of the level "high"; its autoencoder stays.

work folder, training images -> figures by seed
"""

import json
import subprocess
import sys
from argparse import Namespace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from generator import Pictures, Size, generate, read
from label import duplicates, rate_of, write_labels

from deepssim_scan.matching.decision import Bounds
from deepssim_scan.reporting.matches import judged_pairs

ENCODER = "trained.safetensors"
LEVEL = "high"


def over_seeds(work: Path, training: Pictures, size: Size, options: Namespace) -> dict[str, Any]:
    """Return what encoders, and generators, of several seeds give."""
    seeds = range(options.seeds)
    return {
        "encoders": _encoders(work, [*seeds], options.seed_steps),
        "generators": [_generator(work, training, size, options, seed) for seed in seeds],
    }


def _encoders(work: Path, seeds: list[int], steps: int) -> dict[str, Any]:
    """Return the macro F1 of each encoder on augmented samples, and the labels they agree on."""
    files = [work / f"seed-{seed}.safetensors" for seed in seeds]
    for seed, file in zip(seeds, files, strict=True):
        train_encoder(work, file, steps, seed)
    out = work / "evaluation-seeds"
    if not out.exists():
        sides = ["--training", work / "training", "--synthetic", work / "augmented"]
        asked = [part for file in files for part in ("--metric", f"deepssim={file}")]
        run("evaluate", "--pairs", work / "labelled.csv", *sides, *asked, "--fit", "--out", out)
    told = json.loads((out / "evaluation.json").read_text("utf-8"))["metrics"]
    pairs = pq.read_table(out / "pairs.parquet").to_pydict()
    tested = np.array(pairs["tested"])
    labels = [
        Bounds(*told[title]["thresholds"]["fitted"]).judge(np.array(pairs[title])[tested])
        for title in told
    ]
    return {
        "steps": steps,
        "macro_f1": [told[title]["fitted"]["macro_f1"] for title in told],
        "agreement": [float((a == b).mean()) for a, b in combinations(labels, 2)],
    }


def _generator(
    work: Path, training: Pictures, size: Size, options: Namespace, seed: int
) -> dict[str, Any]:
    """Return how many samples of a generator of a seed are duplicates, by label and by a query."""
    out = work / (LEVEL if seed == options.seed else f"{LEVEL}-seed-{seed}")
    if not (out / "generator.json").exists():
        generate(training, size, out, LEVEL, options.count, seed)
    if not (out / "labelled.csv").exists():
        label_samples(out, training)
    report = out / "report"
    if not report.exists():
        run("query", "--synthetic", out / "samples", "--index", work / "index", "--report", report)
    flagged = {s for s, _, verdict, _ in judged_pairs(report) if verdict == "duplicate"}
    labelled = out / "labelled.csv"
    copies = {Path(name).name for name in duplicates(labelled)}
    found = {"flagged": len(flagged), "flagged_duplicates": len(flagged & copies)}
    return {"seed": seed} | rate_of(labelled) | found


def label_samples(out: Path, training: Pictures) -> None:
    """Label the samples of a generator, in its folder."""
    samples = read(out / "samples", training.pixels.shape[2])
    names = [f"{out.name}/{name}" for name in samples.names]
    path = out / "labelled.csv"
    write_labels(samples.pixels[:, 0], names, training.pixels[:, 0], training.names, path)


def train_encoder(work: Path, out: Path, steps: int, seed: int) -> None:
    """Train the bundled encoder on the training images, unless that is done."""
    asked = ["--images", work / "training", "--out", out, "--steps", steps, "--seed", seed]
    if not out.exists():
        going = ["--resume"] if out.with_name(f"{out.name}.state").exists() else []
        run("train", *asked, *going)


def run(*command: Any) -> None:
    """Run a command of deepssim-scan, as a user does."""
    program = Path(sys.executable).with_name("deepssim-scan")
    done = subprocess.run([str(each) for each in (program, *command)], check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}")
