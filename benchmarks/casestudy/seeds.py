"""How much other seeds change: of the generator, and of the encoder.

What a study says of one generator and of one encoder can be luck. Here generators of the level
"high" are trained with several seeds (their autoencoder stays), and what a query finds of each
one's copies is told. Encoders are trained on the training images with several seeds, and are
evaluated on the augmented samples of all generators.

    python benchmarks/casestudy/seeds.py --modalities brain
    python benchmarks/casestudy/seeds.py --images folder-of-a-folder-a-person

Every step is kept, and a run that was stopped goes on. Results are in
benchmarks/results/seeds_NAME.json, of which `write_docs.py` makes a table of docs/case-study.md.
"""

import json
import os
import sys
from argparse import Namespace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness
import steps
from generator import SIZES, Pictures, generate
from label import duplicates, rate_of

from deepssim_scan.matching.decision import Bounds
from deepssim_scan.reporting.matches import judged_pairs

LEVEL = "high"


def main() -> None:
    """Run what was not run, and write the results of each set."""
    options = steps.options_of(__doc__, {"seeds": 3, "encoder_steps": 200}).parse_args()
    names, whose = steps.named(options)
    for name in names:
        made = _over_seeds(name, options.work / "seeds" / name, options)
        harness.write(f"seeds_{name}", options, {}, {}, modality=name, **whose, **made)


def _over_seeds(name: str, work: Path, options: Namespace) -> dict[str, Any]:
    """Return what generators, and encoders, of several seeds give."""
    training = steps.people_of(name, work, options)
    seeds = range(options.seeds)
    generators = [f"seed-{seed}" for seed in seeds]
    for seed, each in zip(seeds, generators, strict=True):
        _generate(work / each, training, seed, options)
    steps.once(work / "pairs.done", lambda: steps.gather(work, generators, options.seed))
    index = steps.index_of(work)
    return {
        "generators": [_found(work / each, index) for each in generators],
        "encoders": _encoders(work, [*seeds], options.encoder_steps),
    }


def _generate(out: Path, training: Pictures, seed: int, options: Namespace) -> None:
    """Train a generator, and label its samples."""
    if not (out / "generator.json").exists():
        generate(training, SIZES[options.size], out, LEVEL, options.count, seed)
    steps.once(out / "labelled.done", lambda: steps.label_samples(out, training))


def _found(out: Path, index: Path) -> dict[str, Any]:
    """Return how many samples of a generator are duplicates, by label and by a query."""
    report = out / "report"
    if not report.exists():
        steps.command("query", "--synthetic", out / "samples", "--index", index, "--report", report)
    flagged = {s for s, _, verdict, _ in judged_pairs(report) if verdict == "duplicate"}
    copies = {Path(name).name for name in duplicates(out / "labelled.csv")}
    found = {"flagged": len(flagged), "flagged_duplicates": len(flagged & copies)}
    return rate_of(out / "labelled.csv") | found


def _encoders(work: Path, seeds: list[int], length: int) -> dict[str, Any]:
    """Return the macro F1 of each encoder on augmented samples, and the labels they agree on."""
    files = [work / f"seed-{seed}.safetensors" for seed in seeds]
    for seed, file in zip(seeds, files, strict=True):
        steps.train_encoder(work, file, length, seed)
    out = work / "evaluation"
    if not out.exists():
        sides = ["--training", work / "training", "--synthetic", work / steps.HOW[1]]
        asked = [part for file in files for part in ("--metric", f"deepssim={file}")]
        pairs = ["--pairs", work / "labelled.csv"]
        steps.command("evaluate", *pairs, *sides, *asked, "--fit", "--out", out)
    told = json.loads((out / "evaluation.json").read_text("utf-8"))["metrics"]
    scores = pq.read_table(out / "pairs.parquet").to_pydict()
    tested = np.array(scores["tested"])
    labels = [
        Bounds(*told[title]["thresholds"]["fitted"]).judge(np.array(scores[title])[tested])
        for title in told
    ]
    return {
        "steps": length,
        "macro_f1": [told[title]["fitted"]["macro_f1"] for title in told],
        "agreement": [float((a == b).mean()) for a, b in combinations(labels, 2)],
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
