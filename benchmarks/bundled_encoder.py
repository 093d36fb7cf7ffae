"""Make the bundled encoder and its calibration: draw images, train on them, calibrate on others.

    python benchmarks/bundled_encoder.py

`bundled_encoder.toml` says how much of what. The images are procedural ones and deformations of
the MNI152 template, sliced and projected: no image of a person goes in. A run that was
stopped goes on. Stages after the one that is released are trials. `--stage` runs one stage alone,
from what the one before left in the folder, or the encoder in the package where that is it.
`--release` puts the checkpoint into the package, and its history into docs/. The calibration is of
pseudo-subjects that it was not trained on; `--calibrate` makes that alone, of the encoder in the
package. Needs the extra `demo` (nilearn carries the MNI152 template).
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import shutil
import tomllib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anatomy.ahead import Ahead
from anatomy.fresh import Fresh
from anatomy.window import window
from PIL import Image
from rich.progress import track
from smaller import smaller

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.cli.console import messages
from deepssim_scan.cli.progress import reporting
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import FAST, SMALL, Architecture
from deepssim_scan.encoder.bundled import BUNDLED, CALIBRATION
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.imaging.changes.augment import simulate_copy
from deepssim_scan.imaging.image_set import ImageSet
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, TrainConfig
from deepssim_scan.jobs.train import Trained, train
from deepssim_scan.training import loop
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import Dataset
from deepssim_scan.training.procedural import FAMILIES
from deepssim_scan.training.pseudo_subjects import FILLED, mni152, projections, slices

RECIPE = Path(__file__).with_suffix(".toml")
HISTORY = Path(__file__).parents[1] / "docs" / "bundled-encoder-history.csv"
FOLDER = 100  # procedural images in one
GROUP = 16  # subjects in turn that are shown whole, or in one window
POSE = "canonical.pose.head.out.weight"
VALIDATION, VALIDATED, BATCH = 10**9, 16, 16  # the first seed, and batches, to validate on
FITTED, FITTED_ON = 777_000, 40  # the same, to fit the stem of a smaller encoder to
GLARE = (1, 1, 1.25, 1, 1, 1.6)  # of subjects in turn: beyond 1, the brightest parts are clipped


def main() -> None:
    """Draw the images that are not there yet, train, and release what came out."""
    recipe = tomllib.loads(RECIPE.read_text())
    options = _options(list(recipe["stages"]))
    if options.calibrate:
        calibrate(options.folder, recipe, options.workers)
        return
    every = list(recipe["stages"])
    names = [options.stage] if options.stage else every[: every.index(recipe["released"]) + 1]
    stages = {name: options.folder / f"stage-{name}.safetensors" for name in names}
    with reporting(messages) as progress:
        run = RunContext(options.device, options.workers, progress=progress)
        initial = before(options.stage, recipe, options.folder) if options.stage else None
        for name, out in stages.items():
            if not out.exists():
                train_stage(recipe, name, initial, out, run)
            initial = out
    if options.release:
        release(stages)
        calibrate(options.folder, recipe, options.workers)


def before(stage: str, recipe: dict[str, Any], folder: Path) -> Path | None:
    """Return what a stage that runs alone begins with, None for the first."""
    number = int(stage) - 1
    return trained_by(str(number), recipe, folder) if number else None


def trained_by(stage: str, recipe: dict[str, Any], folder: Path) -> Path:
    """Return what a stage left in the folder; the encoder in the package is of the released one."""
    path = folder / f"stage-{stage}.safetensors"
    if path.exists():
        return path
    if stage == recipe["released"]:
        return BUNDLED
    raise SystemExit(
        f"{path}: is wanted, and not there. Train stage {stage} first ({RECIPE.name})."
    )


def train_stage(
    recipe: dict[str, Any], name: str, initial: Path | None, out: Path, run: RunContext
) -> None:
    """Train one stage from a checkpoint; the first starts from random weights."""
    stage = dict(recipe["stages"][name])
    if stage.pop("fresh", False):
        trained_anew(recipe, initial, stage, out, run)
        return
    corpus = out.with_name("corpus")
    draw(corpus, recipe["corpus"], run.workers or 1)
    print(f"{out}: {trained_on(corpus, initial, stage, out, run).after}")


def release(stages: dict[str, Path]) -> None:
    """Put the last stage into the package, and the histories of all into docs/.

    Histories of stages that were not run stay. The digests of what it was trained on are left out:
    no image of a person is among them.
    """
    loaded = checkpoint.load(list(stages.values())[-1])
    facts = {name: value for name, value in loaded.training.items() if name != "seen"}
    checkpoint.save(BUNDLED, loaded.encoder, facts)
    with HISTORY.open(newline="") as file:
        kept = [row for row in csv.reader(file) if row[0] not in stages]
    for name, out in stages.items():
        with out.with_name(f"{out.name}.csv").open(newline="") as rows:
            kept += [[name, *row] for row in list(csv.reader(rows))[1:]]
    with HISTORY.open("w", newline="") as file:
        csv.writer(file).writerows(kept)


def trained_on(
    corpus: Path, initial: Path | None, recipe: dict[str, Any], out: Path, run: RunContext
) -> Trained:
    """Train on the corpus, from where a run that was stopped had come to."""
    config = TrainConfig(initial, "small", TrainingConfig(**recipe), resume=True)
    return train(corpus, out, config, run)


def trained_anew(
    recipe: dict[str, Any], initial: Path, stage: dict[str, Any], out: Path, run: RunContext
) -> Checkpoint:
    """Train on images that are drawn anew for each step; those to validate on are drawn once.

    A stage that has a teacher trains the fast encoder.
    """
    begun = out.with_name(f"{out.stem}-start.safetensors")
    taught_by = stage.pop("teacher", None)
    teacher = checkpoint.load(trained_by(taught_by, recipe, out.parent)) if taught_by else None
    source = Fresh(recipe["fresh"], SMALL.standardisation)
    start = checkpoint.load(initial)
    start = smaller_of(start, source, begun) if teacher else of_shape(SMALL, start, begun)
    fresh = Ahead(source, run.workers or 1)
    seeds = range(VALIDATION, VALIDATION + VALIDATED)
    held = [fresh.draw(BATCH, torch.Generator().manual_seed(seed)) for seed in seeds]
    images = [*torch.cat(held).half()]
    validation = ImageSet.of(images, [f"{number}.png" for number in range(len(images))])
    dataset = Dataset(fresh, validation, 0, frozenset())
    config = TrainingConfig(**stage)
    device = run.device_here
    return loop.train(dataset, out, config, start, teacher=teacher, device=device, resume=True)


def smaller_of(start: Checkpoint, source: Fresh, path: Path) -> Checkpoint:
    """Return a fast encoder that is near another one on copies of what is drawn."""
    if start.architecture == FAST:
        return start
    copies = []
    for seed in range(FITTED, FITTED + FITTED_ON):
        generator = torch.Generator().manual_seed(seed)
        copies.append(simulate_copy(source.draw(2 * BATCH, generator), generator)[0])
    checkpoint.save(path, smaller(start.encoder, FAST, torch.cat(copies)), start.training)
    return checkpoint.load(path)


def of_shape(wanted: Architecture, start: Checkpoint, path: Path) -> Checkpoint:
    """Give weights to an encoder whose poses have a scale, or whose gamma is undone further.

    Nothing is known about the scale yet.
    """
    if start.architecture == wanted:
        return start
    weights = start.encoder.state_dict()
    if wanted.scale > start.architecture.scale:
        others = weights[POSE]
        rng = torch.Generator().manual_seed(0)
        scale = 0.1 * others.std() * torch.randn(1, others.shape[1], generator=rng)
        weights[POSE] = torch.cat([others, scale])
    encoder = Encoder(wanted)
    encoder.load_state_dict(weights)
    checkpoint.save(path, encoder, start.training)
    return checkpoint.load(path)


def calibrate(folder: Path, recipe: dict[str, Any], workers: int) -> None:
    """Calibrate the bundled encoder on pseudo-subjects that are not in its corpus."""
    people = recipe["corpus"] | recipe["calibration"] | {"families": {}}
    draw(folder / "calibration", people, workers, first=recipe["corpus"]["subjects"])
    config = IndexConfig(ingest=IngestConfig(subject_regex="/([0-9]+)/"), adapt="never")
    with reporting(messages) as progress:
        build_index(folder / "calibration", folder / "index", config, RunContext(progress=progress))
    found = Calibration.read(folder / "index")
    replace(found, encoder="", store="", subjects="bundled").write(CALIBRATION.parent)


def draw(corpus: Path, recipe: dict[str, Any], workers: int, first: int = 0) -> None:
    """Draw all images into a folder that appears when it is whole, unless it is there.

    Subjects are numbered from `first` on.
    """
    drawn, wanted = corpus.with_name(f"{corpus.name}.json"), json.dumps(recipe)
    if corpus.exists():
        if not drawn.exists() or drawn.read_text() != wanted:
            raise SystemExit(f"{corpus}: of another recipe. Remove it to draw it anew.")
        return
    part = corpus.with_name(f".{corpus.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    parts = [
        partial(write_family, part, recipe, family, start)
        for family, count in recipe["families"].items()
        for start in range(0, count, FOLDER)
    ]
    parts += [
        partial(write_subject, part, recipe, each)
        for each in range(first, first + recipe["subjects"])
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        running = [pool.submit(each) for each in parts]
        for done in track(as_completed(running), "images", len(running), console=messages):
            done.result()
    drawn.write_text(wanted)
    part.rename(corpus)


def write_family(out: Path, recipe: dict[str, Any], family: str, start: int) -> None:
    """Write a folder of images of one procedural family."""
    for number in range(start, min(start + FOLDER, recipe["families"][family])):
        name = f"{recipe['seed']} {family} {number}".encode()
        rng = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:4]))
        view = window(number % 2 == 1, recipe["side"], rng)
        image = view.of(FAMILIES[family](rng, 1, view.drawn))[0].numpy()
        save(image, out / family / f"{number // FOLDER:03d}" / f"{number:05d}.png")


def write_subject(out: Path, recipe: dict[str, Any], subject: int) -> None:
    """Write one pseudo-subject: slices on the three axes in anatomical order, and projections."""
    volume, seed = mni152(), recipe["seed"] * 1_000_000 + subject
    folder, glare = out / "mni152" / f"{subject:04d}", GLARE[subject % len(GLARE)]
    group = subject // GROUP
    windows = torch.Generator().manual_seed(recipe["seed"] * 1_000_000 + group)
    for axis, (name, span) in enumerate(FILLED.items()):
        view = window(group % 2 == 1, recipe["side"], windows)
        positions = np.linspace(*span, recipe["slices"]).tolist()
        person = torch.Generator().manual_seed(seed)
        images = view.of(slices(volume, axis, positions, view.drawn, person))
        for position, image in zip(positions, images.numpy(), strict=True):
            save(glare * image, folder / f"{name}-{position:.3f}.png")
    view = window(group % 2 == 1, recipe["side"], windows)
    angles = (np.arange(recipe["views"]) * (360 / recipe["views"])).tolist()
    person = torch.Generator().manual_seed(seed)
    shell = subject % 2 == 0
    images = view.of(projections(volume, angles, view.drawn, person, shell=shell))
    for angle, image in zip(angles, images.numpy(), strict=True):
        save(glare * image, folder / f"view-{angle:05.1f}.png")


def _options(stages: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and decode")
    parser.add_argument("--stage", choices=stages, help="only this")
    parser.add_argument("--release", action="store_true", help="put it into the package")
    parser.add_argument("--calibrate", action="store_true", help="only calibrate")
    return parser.parse_args()


def save(image: np.ndarray, path: Path) -> None:
    """Write an image as an 8-bit PNG, 1 and above being white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
