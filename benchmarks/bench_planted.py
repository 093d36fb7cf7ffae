"""How often an encoder ranks the source of a planted copy first, and among the candidates.

Copies are planted in the images of folders (`imaging.changes.copies`), embedded in the test-time
views, and looked for among all images of their folder by the score alone. Nothing is adapted,
registered or judged: this compares encoders, not verdicts. Each encoder meets the same copies.

    python benchmarks/bench_planted.py --images DIR... --encoder before=FILE
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from harness import Spread, console, parser, write
from rich.table import Table
from torch import Tensor

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.tta import best_scores, embed_tta
from deepssim_scan.imaging.changes.copies import plant
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.matching.config import CANDIDATES
from deepssim_scan.matching.evidence import RULE

Ranks = dict[str, list[int]]
"""The ranks of the sources, from 0, by kind of copy."""


def main() -> None:
    """Measure, print and write."""
    options = _options()
    torch.set_num_threads(1)
    named = dict(each.split("=", 1) for each in options.encoder)
    files = {"bundled": BUNDLED} | {name: Path(file) for name, file in named.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for folder in options.images:
        images = read(folder, options.most, options.seed)
        for name, file in files.items():
            loaded = checkpoint.load(file)
            ranks = ranked(loaded.encoder, images, options.copies, options.seed)
            found.setdefault(folder.name, {})[name] = shares(ranks) | {"images": len(images)}
    show(found)
    fingerprints = {name: checkpoint.load(file).fingerprint for name, file in files.items()}
    sources = {
        f"{folder}, {name}, source among {CANDIDATES}": Spread.of([each["among"]], "share")
        for folder, sides in found.items()
        for name, each in sides.items()
    }
    write("planted", options, sources, {}, encoders=fingerprints, found=found)


def read(folder: Path, most: int, seed: int) -> Tensor:
    """Read at most `most` images of a folder, standardised: (N, H, W)."""
    config, run = IngestConfig(), RunContext("cpu")
    listing = list_images(folder, config.selection, run)
    every = [
        torch.from_numpy(image.pixels)
        for item in decode_images(listing, RULE, config, run)
        for image in item
        if image.pixels is not None
    ]
    chosen = np.random.default_rng(seed).permutation(len(every))[:most]
    return torch.stack([every[index] for index in np.sort(chosen)])


def ranked(encoder: Encoder, images: Tensor, copies: int, seed: int) -> Ranks:
    """Rank the source of `copies` copies of each kind among all images."""
    gallery = embed(encoder, images)
    ranks: Ranks = {}
    for number, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(seed * len(KINDS) + number)
        sources = torch.randperm(len(images), generator=generator)[:copies]
        planted = plant(images[sources], torch.full_like(sources, number), generator)
        scores = best_scores(embed_tta(encoder, torch.stack(planted)), gallery)
        own = scores[torch.arange(len(sources)), sources]
        ranks[kind] = (scores > own[:, None]).sum(1).tolist()
    return ranks


def shares(ranks: Ranks) -> dict[str, float]:
    """Return the shares of sources that are first, and among the candidates by kind."""
    every = np.concatenate([np.array(each) for each in ranks.values()])
    by_kind = {kind: float((np.array(each) < CANDIDATES).mean()) for kind, each in ranks.items()}
    whole = {"first": float((every == 0).mean()), "among": float((every < CANDIDATES).mean())}
    return whole | {f"among, {kind}": share for kind, share in by_kind.items()}


def show(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a column an encoder and folder."""
    columns = [(folder, name) for folder, sides in found.items() for name in sides]
    table = Table(title=f"Source first, and among {CANDIDATES} by kind")
    table.add_column("")
    for folder, name in columns:
        table.add_column(f"{folder}, {name}", justify="right")
    for row in next(iter(next(iter(found.values())).values())):
        values = [found[folder][name][row] for folder, name in columns]
        table.add_row(row, *(f"{value:.3f}" if row != "images" else f"{value}" for value in values))
    console.print(table)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"copies": 100, "most": 1500})
    made.add_argument("--images", type=Path, nargs="+", required=True, help="folders of images")
    made.add_argument("--encoder", nargs="*", default=[], metavar="NAME=FILE", help="others")
    return made.parse_args()


if __name__ == "__main__":
    main()
