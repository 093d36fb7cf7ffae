"""Embedding: the bundled encoder beside ConvNeXt-Base, in images a second.

For each network the bare forward pass, on standardised images in memory, and end to end: from
a folder of PNG files to a finished store, by the function that `build-index` and `query` use,
which reads, hashes, decodes, standardises, embeds and writes. It also starts the processes that
decode, so the time that one file takes is shown as well: the fewer the files, the more it weighs.

ConvNeXt-Base is the reference's architecture; its weights are random, which take as long as
any. Both see the same files, and the reference never resizes, so `--side` is its input.

    python benchmarks/bench_embed.py --files 2000 --base-files 96
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

from deepssim_scan import checkpoint, scan
from deepssim_scan.checkpoint import Checkpoint, Thresholds
from deepssim_scan.encoder import REFERENCE, Encoder, embed
from deepssim_scan.scan import EmbedConfig

BUNDLED, BASE = "bundled", "ConvNeXt-Base"
FORWARD, END, START = "forward pass", "end to end", "one file, end to end"


@dataclass(frozen=True, slots=True)
class Side:
    """One network and how many images it is given."""

    name: str
    checkpoint: Checkpoint
    forward: int
    files: int


def main() -> None:
    """Measure both networks, print and write."""
    options = _options()
    measured: dict[str, Spread] = {}
    loaded = checkpoint.load(options.encoder)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for side in (
            Side(BUNDLED, loaded, min(options.forward, options.files), options.files),
            Side(BASE, _reference(work), options.base_files, options.base_files),
        ):
            measured |= measure(side, options, work)
    median = {name: spread.median for name, spread in measured.items()}
    ratios = {
        f"{side}: {END} / {FORWARD}": median[f"{side}, {END}"] / median[f"{side}, {FORWARD}"]
        for side in (BUNDLED, BASE)
    } | {
        f"{what}: {BUNDLED} / {BASE}": median[f"{BUNDLED}, {what}"] / median[f"{BASE}, {what}"]
        for what in (FORWARD, END)
    }
    show(f"Images of {options.side}x{options.side} in batches of {options.batch}", measured, ratios)
    write("embed", options, measured, ratios, encoder=loaded.fingerprint)


def measure(side: Side, options: argparse.Namespace, work: Path) -> dict[str, Spread]:
    """Return a network's rates, of the forward pass and end to end."""
    encoder, config = side.checkpoint.encoder, EmbedConfig(device="cpu", batch=options.batch)
    drawn = procedural(side.forward, options.side, options.seed)
    pixels = standardised(drawn, encoder.architecture.standardisation)
    one, every = work / f"{side.name}, one", work / f"{side.name}, every"
    for folder, files in ((one, 1), (every, side.files)):
        write_images(folder, files, options.side, options.seed)
    forward = {FORWARD: lambda: embed(encoder, pixels, options.batch)}
    start = {START: lambda: embed_folder(one, side.checkpoint, config, work)}
    end = {END: lambda: embed_folder(every, side.checkpoint, config, work)}
    taken = seconds(start | end, options.repeats, warm_up=start)
    found = rates(seconds(forward, options.repeats), side.forward, "images")
    found |= rates({END: taken[END]}, side.files, "images")
    found[START] = Spread.of(taken[START], "s")
    return {f"{side.name}, {what}": spread for what, spread in found.items()}


def embed_folder(folder: Path, loaded: Checkpoint, config: EmbedConfig, work: Path) -> None:
    """Embed a folder into a new store, as both commands do."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        scan._embed_folder(folder, Path(place) / "store", loaded, config, "images", scan.silent)


def _reference(folder: Path) -> Checkpoint:
    """Save and load the reference's architecture with random weights."""
    torch.manual_seed(0)
    path = folder / "base.safetensors"
    checkpoint.save(path, Encoder(REFERENCE), Thresholds(), {"random": True})
    return checkpoint.load(path)


def _options() -> argparse.Namespace:
    sizes = {
        "files": 2_000,
        "forward": 256,
        "base_files": 96,
        "side": 128,
        "batch": 64,
        "repeats": 3,
    }
    made = parser(__doc__, sizes)
    add_encoder(made)
    return made.parse_args()


if __name__ == "__main__":
    main()
