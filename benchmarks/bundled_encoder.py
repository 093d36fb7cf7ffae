"""Make the bundled encoder: draw its images, train on them, fit its thresholds.

    python benchmarks/bundled_encoder.py

`bundled_encoder.toml` says how much of what. The images are procedural ones and deformations of
the MNI152 template, sliced and projected: no image of a person goes in. A run that was
stopped goes on. `--init` begins with the weights of a checkpoint, not with random ones: so was the
released encoder made, in two runs (docs/bundled-encoder.md). `--release` puts the checkpoint into
the package, and its history into docs/. Needs the extra `demo` (nilearn carries the template).
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from deepssim_scan import checkpoint
from deepssim_scan.checkpoint import BUNDLED
from deepssim_scan.cli.console import messages
from deepssim_scan.cli.progress import reporting
from deepssim_scan.encoder import SMALL, pick_device
from deepssim_scan.phantoms import encased, phantom, recoloured
from deepssim_scan.procedural import FAMILIES
from deepssim_scan.subjects import FILLED, mni152, projections, slices
from deepssim_scan.training import TrainingConfig, train_on_folder

RECIPE = Path(__file__).with_suffix(".toml")
HISTORY = Path(__file__).parents[1] / "docs" / "bundled-encoder-history.csv"
FOLDER = 100  # procedural images in one
SIDE, VOXELS = 128, 96  # of an image, and of a body that never was
GLARE = 0.8  # how far beyond white the brightest parts of a third of the subjects go


def main() -> None:
    """Draw the images that are not there yet, train, and release what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--init", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw and decode")
    parser.add_argument("--release", action="store_true", help="put it into the package")
    options = parser.parse_args()
    recipe = tomllib.loads(RECIPE.read_text())
    corpus, out = options.folder / "corpus", options.folder / "encoder.safetensors"
    draw(corpus, recipe["corpus"], options.workers)
    with reporting(messages) as progress:
        trained = train_on_folder(
            corpus,
            out,
            TrainingConfig(**recipe["training"]),
            checkpoint.load(options.init) if options.init else SMALL,
            workers=options.workers,
            device=pick_device(options.device),
            resume=True,
            report=progress,
            report_step=progress.training,
        )
    print(f"{out}: {trained.checkpoint.thresholds}, {trained.after}")
    if options.release:
        shutil.copyfile(out, BUNDLED)
        shutil.copyfile(out.with_name(f"{out.name}.csv"), HISTORY)


def draw(corpus: Path, recipe: dict[str, Any], workers: int) -> None:
    """Draw all images into a folder that appears when it is whole, unless it is there."""
    drawn, wanted = corpus.with_name("corpus.json"), json.dumps(recipe)
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
    for write, what in ((write_phantom, "phantoms"), (write_subject, "mni152")):
        parts += [partial(write, part, recipe, each) for each in range(recipe[what]["count"])]
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
        image = FAMILIES[family](rng, 1, SIDE)[0].numpy()
        save(image, out / family / f"{number // FOLDER:03d}" / f"{number:05d}.png")


def write_phantom(out: Path, recipe: dict[str, Any], number: int) -> None:
    """Write a folder of one body that never was, and of what a few people would have of it."""
    rng = torch.Generator().manual_seed(recipe["seed"] * 1_000_000 + 500_000 + number)
    volume = phantom(rng, VOXELS)
    folder = out / "phantoms" / f"{number:04d}"
    for subject in range(recipe["phantoms"]["subjects"]):
        seed = int(torch.randint(1 << 31, (), generator=rng))
        for name, image in views(volume, seed, recipe["phantoms"]["slices"], shell=False):
            save(image, folder / f"phantom-{name}-{subject}.png")


def write_subject(out: Path, recipe: dict[str, Any], subject: int) -> None:
    """Write one pseudo-subject of the template: two of three in other colours, half in a skull."""
    volume, seed = mni152(), recipe["seed"] * 1_000_000 + subject
    rng = torch.Generator().manual_seed(seed + 250_000)
    skull, coloured, bright, glare = torch.rand(4, generator=rng).tolist()
    if skull < 0.5:
        volume = encased(volume, rng)
    if coloured < 0.67:
        volume = recoloured(volume, rng)
    glare = 1 + GLARE * glare * (bright < 0.33)
    for name, image in views(volume, seed, recipe["mni152"]["slices"], shell=skull > 0.5):
        save(glare * image, out / "mni152" / f"{subject:04d}" / f"{name}.png")


def views(
    volume: Tensor, seed: int, count: int, *, shell: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Take slices of a pseudo-subject on the three axes, and as many projections as on one."""
    for axis, (name, span) in enumerate(FILLED.items()):
        positions = np.linspace(*span, count).tolist()
        person = torch.Generator().manual_seed(seed)
        images = slices(volume, axis, positions, SIDE, person, shell=shell)
        for position, image in zip(positions, images.numpy(), strict=True):
            yield f"{name}-{position:.3f}", image
    angles = (np.arange(count) * (360 / count)).tolist()
    person = torch.Generator().manual_seed(seed)
    images = projections(volume, angles, SIDE, person, shell=shell)
    for angle, image in zip(angles, images.numpy(), strict=True):
        yield f"view-{angle:05.1f}", image


def save(image: np.ndarray, path: Path) -> None:
    """Write an image as an 8-bit PNG, 1 and above being white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).save(path)


if __name__ == "__main__":
    main()
