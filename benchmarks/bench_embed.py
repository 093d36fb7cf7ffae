"""Embedding: the bundled encoder beside ConvNeXt-Base, and an earlier one, in images a second.

For each network the bare forward pass, of standardised images in memory, and end to end: from a
folder of PNG files to a finished store, by the function that `build-index` and `query` use, which
reads, hashes, decodes, standardises, embeds and writes. Both in the same worker processes, one a
core, which have been started.

Then, on one thread, the parts of the bundled encoder's forward pass.

ConvNeXt-Base is the reference's architecture; its weights are random, which take as long as
any. Both see the same files, and the reference never resizes, so `--side` is its input.

    python benchmarks/bench_embed.py --files 2000 --base-files 96
    python benchmarks/bench_embed.py --before FILE
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import (
    Spread,
    add_encoder,
    parser,
    procedural,
    rates,
    seconds,
    show,
    standardised,
    write,
    write_images,
)
from torch import Tensor

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import REFERENCE
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.equivariant import written_out
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.store.embed_listing import Embedder

BUNDLED, BASE, BEFORE = "bundled", "ConvNeXt-Base", "before"
FORWARD, END = "forward pass", "end to end"
BATCH, BATCHES = 16, 16  # in which the parts are measured, as the forward pass goes


@dataclass(frozen=True, slots=True)
class Side:
    """One network and how many images it is given."""

    name: str
    checkpoint: Checkpoint
    files: int


def main() -> None:
    """Measure both networks, print and write."""
    options = _options()
    measured: dict[str, Spread] = {}
    loaded = checkpoint.load(options.encoder)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        others = [Side(BASE, _reference(work), options.base_files)]
        if options.before:
            others.append(Side(BEFORE, checkpoint.load(options.before), options.files))
        for side in (Side(BUNDLED, loaded, options.files), *others):
            measured |= measure(side, options, work)
    parts = {} if loaded.encoder.canonical is None else measure_parts(loaded, options)
    measured |= parts
    compared = [(f"{side}, {END}", f"{side}, {FORWARD}") for side in (BUNDLED, BASE)]
    names = [side.name for side in others]
    compared += [
        (f"{BUNDLED}, {what}", f"{name}, {what}") for name in names for what in (FORWARD, END)
    ]
    ratios = {f"{a} / {b}": measured[a].median / measured[b].median for a, b in compared}
    whole = sum(part.median for part in parts.values())
    ratios |= {f"{name} / all parts": part.median / whole for name, part in parts.items()}
    show(f"Images of {options.side}x{options.side}", measured, ratios)
    write("embed", options, measured, ratios, encoder=loaded.fingerprint)


def measure(side: Side, options: argparse.Namespace, work: Path) -> dict[str, Spread]:
    """Return a network's rates, of the forward pass and end to end."""
    rule = side.checkpoint.architecture.standardisation
    drawn = procedural(side.files, options.side, options.seed)
    pixels = list(standardised(drawn, rule).numpy())
    folder = work / f"{side.name}, every"
    write_images(folder, side.files, options.side, options.seed)
    with RunContext("cpu").opened() as run:
        embedder = Embedder(side.checkpoint, run=run)
        ways = {
            FORWARD: lambda: embedder.embed_pixels(pixels),
            END: lambda: embed_folder(folder, embedder, work),
        }
        found = rates(seconds(ways, options.repeats, warm_up=ways), side.files, "images")
    return {f"{side.name}, {what}": spread for what, spread in found.items()}


def measure_parts(loaded: Checkpoint, options: argparse.Namespace) -> dict[str, Spread]:
    """Return the seconds that each part of the bundled encoder takes on one thread."""
    encoder, rule = loaded.encoder, loaded.architecture.standardisation
    canonical, blocks = encoder.canonical, encoder.feature_extractor
    images = standardised(procedural(BATCH * BATCHES, options.side, options.seed), rule)
    torch.set_num_threads(1)
    with torch.inference_mode(), written_out(encoder):
        normalised = canonical.normalised(images)
        channels, _ = canonical.of_normalised(normalised)
        parts = {
            "gamma": (canonical.normalised, images),
            "pose, reading and local contrast": (canonical.of_normalised, normalised),
            "blocks": (blocks, channels),
            "projection": (encoder.fc, blocks(channels)),
        }
        ways = {name: partial(in_batches, *part) for name, part in parts.items()}
        taken = seconds(ways, options.repeats)
    return {f"{BUNDLED}, {name}": Spread.of(values, "s") for name, values in taken.items()}


def in_batches(part: Callable[[Tensor], Any], images: Tensor) -> None:
    """Give a part of a network all images, in batches as the forward pass does."""
    for batch in images.split(BATCH):
        part(batch)


def embed_folder(folder: Path, embedder: Embedder, work: Path) -> None:
    """Embed a folder into a new store, as both commands do."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        embedder.embed(list_images(folder), Path(place) / "store")


def _reference(folder: Path) -> Checkpoint:
    """Save and load the reference's architecture with random weights."""
    torch.manual_seed(0)
    path = folder / "base.safetensors"
    checkpoint.save(path, Encoder(REFERENCE), {"random": True})
    return checkpoint.load(path)


def _options() -> argparse.Namespace:
    sizes = {
        "files": 2_000,
        "base_files": 96,
        "side": 128,
        "repeats": 3,
    }
    made = parser(__doc__, sizes)
    add_encoder(made)
    made.add_argument("--before", type=Path, help="a checkpoint to measure beside the encoder")
    return made.parse_args()


if __name__ == "__main__":
    main()
