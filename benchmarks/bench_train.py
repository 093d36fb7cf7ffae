"""What `train` makes of an encoder: a folder judged with the bundled one, and with an adapted one.

The folder holds a population average and its deformations, which no encoder here was trained on,
as a user's training set would lie there: a folder a subject. `train` adapts to it, as the command
that a user starts, and prints what both encoders reach on the subjects that it holds out; with
`--steps 0` it fits the thresholds alone. Then copies of the folder's images, changed in the ways of
`held_out`, and non-members, which are further deformations, are judged with all three encoders,
each with its own thresholds.

The adapted encoder was trained on the images whose copies are looked for, as it is when a user
trains on the training set that is judged. It was trained on no non-member.

    python benchmarks/bench_train.py
"""

import argparse
import json
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from baselines import of_encoder
from bench_accuracy import Queries, draw, even_pairs, measured
from bench_accuracy import show as show_scores
from bench_verify import DUPLICATE, reranked
from harness import Spread, add_encoder, console, parser, show, write
from held_out import POSITIONS, Grey, person
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.views import TTA_VIEWS

BUNDLED, FITTED, ADAPTED = "bundled", "thresholds fitted", "adapted"
PEOPLE = ("inia19-projected", "inia19", "mni152", "mni152-projected")


def main() -> None:
    """Write the folder, train on it, judge with all three encoders, print and write."""
    options = _options()
    one = person(options.person)
    gallery, queries = draw(one, options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(gallery, folder / "images")
        encoders, taken, held_out = {BUNDLED: options.encoder}, {}, {}
        for what, steps in {FITTED: ("--steps", "0"), ADAPTED: ()}.items():
            started = time.perf_counter()
            encoders[what] = folder / f"{what}.safetensors"
            held_out[what] = train(folder / "images", encoders[what], options.encoder, steps)
            taken[what] = Spread.of([time.perf_counter() - started], "s")
        pairs = even_pairs(one, options)
        scored = {
            what: measured(of_encoder(what, path, len(TTA_VIEWS)), gallery, queries, pairs, options)
            for what, path in encoders.items()
            if what != FITTED  # its scores are the bundled one's
        }
        flagged = {what: judged(path, gallery, queries) for what, path in encoders.items()}
    show_scores(one.name, scored)
    console.print(f"on the subjects that training held out: {held_out[ADAPTED]}")
    for what, shares in flagged.items():
        console.print(f"{what}, flagged: {shares}")
    show(f"`train` on {len(gallery):,} images", taken, {})
    found = {"people": {one.name: scored}, "flagged": flagged, "held_out": held_out[ADAPTED]}
    write("train", options, taken, {}, **found)


def train(images: Path, out: Path, init: Path, more: Sequence[str]) -> dict[str, Any]:
    """Run the command; return what it prints of the images that it held out."""
    script = Path(sysconfig.get_path("scripts")) / "deepssim-scan"
    paths = ["--images", images, "--out", out, "--init", init]
    command = [script, "train", *paths, "--device", "cpu", "--json", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    printed: dict[str, Any] = json.loads(done.stdout)["held_out"]
    return printed


def judged(path: Path, gallery: Grey, queries: Queries) -> dict[str, float]:
    """Return the shares of copies and of non-members that are flagged, and the thresholds."""
    method, thresholds = of_encoder("", path, len(TTA_VIEWS)), checkpoint.load(path).thresholds
    representations = method.represent(gallery)
    who = {
        "copies": np.concatenate(list(queries.copies.values())),
        "non-members": queries.non_members,
    }
    flagged = {f"above {name}": bound for name, bound in asdict(thresholds).items()}
    for name, images in who.items():
        scores = method.scores(method.represent_queries(images), representations)
        found = reranked(images, gallery, scores, thresholds, top_k=5)
        flagged[name] = float((found.verdicts == DUPLICATE).mean())
    return flagged


def _write(gallery: Grey, folder: Path) -> None:
    """Write each subject's images into a folder of its own."""
    for number, image in enumerate(gallery):
        subject, view = divmod(number, POSITIONS)
        path = folder / f"subject-{subject:03d}" / f"view-{view:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def _options() -> argparse.Namespace:
    sizes = {"subjects": 40, "non_members": 20, "hardest": 4, "copies": 40}
    made = parser(__doc__, sizes | {"pairs": 2_000, "pair_subjects": 10})
    add_encoder(made)
    made.add_argument("--person", choices=PEOPLE, default=PEOPLE[0], help=f"({PEOPLE[0]})")
    return made.parse_args()


if __name__ == "__main__":
    main()
