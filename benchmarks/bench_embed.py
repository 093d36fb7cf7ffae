"""Embedding: the bundled encoder beside ConvNeXt-Base, in images a second.

For each network the bare forward pass, on standardised images in memory, and end to end: from
a folder of PNG files to a finished store, by the function that `build-index` and `query` use,
which reads, hashes, decodes, standardises, embeds and writes. It also starts the processes that
decode, so the time that one file takes is shown as well: the fewer the files, the more it weighs.

ConvNeXt-Base is the reference's architecture; its weights are random, which take as long as
any. Both see the same files, and the reference never resizes, so `--side` is its input.

Last, the whole of `build_index` beside that of an earlier commit, in turns, each time in a
fresh process: what the ledger, the checksums and the isolation of the decoders cost.

    python benchmarks/bench_embed.py --files 2000 --base-files 96 --before cb0c961
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import (
    ROOT,
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

from deepssim_scan import checkpoint
from deepssim_scan.checkpoint import Checkpoint, Thresholds
from deepssim_scan.embed import EmbedConfig, embed_listing
from deepssim_scan.encoder import REFERENCE, Encoder, embed
from deepssim_scan.listing import list_images

BUNDLED, BASE = "bundled", "ConvNeXt-Base"
FORWARD, END, START = "forward pass", "end to end", "one file, end to end"
NOW, BEFORE = "build_index, now", "build_index, before"
PACKAGES = ("scanner", "index", "cli")
BUILD = """
import sys, time
from pathlib import Path
from deepssim_scan.scan import EmbedConfig, build_index

if __name__ == "__main__":
    images, index, encoder, batch = sys.argv[1:]
    config = EmbedConfig(device="cpu", batch=int(batch))
    started = time.perf_counter()
    build_index(Path(images), Path(index), Path(encoder), config)
    print(time.perf_counter() - started)
"""


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
        if options.before:
            measured |= beside_before(options, work)
    median = {name: spread.median for name, spread in measured.items()}
    ratios = {
        f"{side}: {END} / {FORWARD}": median[f"{side}, {END}"] / median[f"{side}, {FORWARD}"]
        for side in (BUNDLED, BASE)
    } | {
        f"{what}: {BUNDLED} / {BASE}": median[f"{BUNDLED}, {what}"] / median[f"{BASE}, {what}"]
        for what in (FORWARD, END)
    }
    if options.before:
        ratios["build_index: now / before"] = median[NOW] / median[BEFORE]
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
        embed_listing(list_images(folder), Path(place) / "store", loaded, config)


def beside_before(options: argparse.Namespace, work: Path) -> dict[str, Spread]:
    """Return the rate of `build_index`, of this tree and of an earlier commit's."""
    trees = {NOW: work / "now", BEFORE: work / "before"}
    for name, revision in ((NOW, None), (BEFORE, options.before)):
        package_of(revision, trees[name])
    script = work / "build.py"
    script.write_text(BUILD)
    taken: dict[str, list[float]] = {name: [] for name in trees}
    for turn in range(options.repeats + 1):
        for name, tree in trees.items():
            images, index = work / f"{BUNDLED}, every", work / f"{name}-{turn}"
            command = [sys.executable, script, images, index, options.encoder, options.batch]
            done = subprocess.run(
                list(map(str, command)),
                env=os.environ | {"PYTHONPATH": str(tree)},
                stdout=subprocess.PIPE,
                check=True,
            )
            if turn:  # the first one warms up
                taken[name].append(float(done.stdout))
    return rates(taken, options.files, "images")


def package_of(revision: str | None, folder: Path) -> None:
    """Lay out the package as it is, or was in a revision, so that PYTHONPATH finds it first."""
    tree = ROOT
    if revision is not None:
        tree = folder / "tree"
        command = ["git", "-C", str(ROOT), "archive", revision, *PACKAGES]
        archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(tree, filter="data")
    shutil.copytree(tree / "scanner", folder / "deepssim_scan")
    for name in ("index", "cli"):
        shutil.copytree(tree / name, folder / "deepssim_scan" / name)


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
    made.add_argument("--before", help="a commit of this repository to compare build_index with")
    return made.parse_args()


if __name__ == "__main__":
    main()
