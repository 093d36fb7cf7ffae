"""What `train` makes of an encoder: a folder scored with the bundled one, and with an adapted one.

The folder holds a population average and its deformations, which no encoder here was trained on,
as a user's training set would lie there: a folder a subject. `train` adapts to it, as the command
that a user starts, and prints what both encoders reach on the subjects that it holds out. Then
copies of the folder's images, changed in the ways of `held_out`, and non-members, which are further
deformations, are scored with both encoders as `bench_accuracy` does. Verdicts are not compared:
each index is calibrated anew, whatever its encoder.

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
from pathlib import Path
from typing import Any

from baselines import of_encoder
from bench_accuracy import draw, even_pairs, measured
from bench_accuracy import show as show_scores
from harness import Spread, add_encoder, console, parser, show, write
from held_out import POSITIONS, Grey, person
from PIL import Image

from deepssim_scan.encoder.views import TTA_VIEWS

BUNDLED, ADAPTED = "bundled", "adapted"
PEOPLE = ("inia19-projected", "inia19", "mni152", "mni152-projected")


def main() -> None:
    """Write the folder, train on it, score with both encoders, print and write."""
    options = _options()
    one = person(options.person)
    gallery, queries = draw(one, options)
    pairs = even_pairs(one, options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(gallery, folder / "images")
        adapted = folder / "adapted.safetensors"
        started = time.perf_counter()
        held_out = train(folder / "images", adapted, options.encoder)
        taken = {ADAPTED: Spread.of([time.perf_counter() - started], "s")}
        scored = {
            what: measured(of_encoder(what, path, len(TTA_VIEWS)), gallery, queries, pairs, options)
            for what, path in {BUNDLED: options.encoder, ADAPTED: adapted}.items()
        }
    show_scores(one.name, scored)
    console.print(f"on the subjects that training held out: {held_out}")
    show(f"`train` on {len(gallery):,} images", taken, {})
    write("train", options, taken, {}, people={one.name: scored}, held_out=held_out)


def train(images: Path, out: Path, init: Path) -> dict[str, Any]:
    """Run the command; return what it prints of the images that it held out."""
    script = Path(sysconfig.get_path("scripts")) / "deepssim-scan"
    paths = ["--images", str(images), "--out", str(out), "--init", str(init)]
    command = [str(script), "train", *paths, "--device", "cpu", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    printed: dict[str, Any] = json.loads(done.stdout)["held_out"]
    return printed


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
