"""Pairs registered and compared, on people that no encoder here was trained on.

The images are those of `bench_accuracy`: a training set of a person and their deformations, copies
of its images, and non-members, which are further deformations.

(a) registration: of copies with planted flips, rotations and all other changes, how many come
    back with the right flip, and with the angle within half a degree (not asked of warps, which
    turn parts of an image);
(b) measures: how well each tells copies, compared with their source, from non-members, whose value
    is the greatest over their candidates, the encoder's best k: AUC by kind of copy, and over all
    kinds the share of the copies above what 0.1 % of the non-members reach;
(c) pairs of 128x128 registered and compared a second, on the CPU.

No single measure is what a query judges by: its calibration weighs all of them.

    python benchmarks/bench_verify.py
"""

import argparse
from typing import Any

import numpy as np
import torch
from baselines import of_encoder
from bench_accuracy import Queries, auc, draw, true_positives
from harness import Spread, add_encoder, console, parser, rates, seconds, standardised, write
from held_out import PEOPLE, TURNS, Grey, person
from numpy.typing import NDArray
from rich.table import Table

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.imaging.registration.comparison import Comparison, compare

WITHIN = 0.5  # degrees
FLIPS = {"horizontal flip": 1, "vertical flip": 2}
WARPED = "smooth warp, 1 pixel"
GEOMETRY = ("flips", "angles")


def main() -> None:
    """Measure, print and write."""
    options = _options()
    people = {name: measured(name, options) for name in options.people}
    for name, found in people.items():
        show(name, found)
    speed = measure_speed(options)
    rate = speed["registration and comparison"].median
    console.print(f"pairs registered and compared: {rate:.0f} a second")
    ratios = {f"{name}: {what}": found[what] for name, found in people.items() for what in GEOMETRY}
    encoder = checkpoint.fingerprint(options.encoder)
    write("verify", options, speed, ratios, people=people, encoder=encoder)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what registration and measures make of one person's copies and non-members."""
    gallery, queries = draw(person(name), options)
    others = best_of_candidates(gallery, queries, options)
    copies = {
        kind: compare(standardised(images), standardised(gallery[queries.sources[kind]]))
        for kind, images in queries.copies.items()
    }
    kinds = {
        kind: right_geometry(kind, found) | aucs(found.measures.numpy(), others)
        for kind, found in copies.items()
    }
    every = np.concatenate([found.measures.numpy() for found in copies.values()])
    return {
        "flips": float(np.mean([row["flips"] for row in kinds.values()])),
        "angles": float(np.mean([kinds[kind]["angles"] for kind in kinds if kind != WARPED])),
        "true positives": {
            measure: true_positives(every[:, column], others[:, column])
            for column, measure in enumerate(NAMES)
        },
        "kinds": kinds,
    }


def best_of_candidates(
    gallery: Grey, queries: Queries, options: argparse.Namespace
) -> NDArray[np.float32]:
    """Return the greatest of each measure over the candidates of each non-member: (Q, 6)."""
    method, images = of_encoder("encoder", options.encoder, len(TTA_VIEWS)), queries.non_members
    scores = method.scores(method.represent_queries(images), method.represent(gallery))
    rows = np.argsort(-scores, axis=1, kind="stable")[:, : options.candidates]
    found = [
        compare(standardised(images), standardised(gallery[of_rank])).measures.numpy()
        for of_rank in rows.T
    ]
    best: NDArray[np.float32] = np.max(found, axis=0)
    return best


def right_geometry(kind: str, found: Comparison) -> dict[str, float]:
    """Return the shares of the copies of a kind whose flip and whose angle were found."""
    flips = found.flip.numpy() == FLIPS.get(kind, 0)
    angles = np.abs(found.degrees.numpy() - TURNS.get(kind, 0.0)) <= WITHIN
    return {"flips": float(flips.mean()), "angles": float(angles.mean())}


def aucs(copies: NDArray[np.float32], others: NDArray[np.float32]) -> dict[str, float]:
    """Return the AUC of each measure: (P, 6), (Q, 6)."""
    return {name: auc(copies[:, column], others[:, column]) for column, name in enumerate(NAMES)}


def measure_speed(options: argparse.Namespace) -> dict[str, Spread]:
    """Return how many pairs are compared a second: slices of pseudo-subjects with each other."""
    images = standardised(np.concatenate([person("mni152").images(each) for each in range(1, 7)]))
    torch.manual_seed(options.seed)
    sides = {"registration and comparison": lambda: compare(images, images.roll(1, 0))}
    return rates(seconds(sides, options.repeats), len(images), "pairs")


def show(name: str, found: dict[str, Any]) -> None:
    """Print one person's table."""
    table = Table(title=f"{name}: flips and angles found, AUC of each measure")
    table.add_column("kind of copy")
    for column in (*GEOMETRY, *NAMES):
        table.add_column(column, justify="right")
    for kind, row in found["kinds"].items():
        table.add_row(kind, *(f"{row[column]:.3f}" for column in (*GEOMETRY, *NAMES)))
    shares = (f"{found['true positives'][measure]:.3f}" for measure in NAMES)
    table.add_row("all kinds, at 0.1 % FPR", *(f"{found[what]:.3f}" for what in GEOMETRY), *shares)
    console.print(table)


def _options() -> argparse.Namespace:
    sizes = {"subjects": 100, "non_members": 60, "hardest": 1, "copies": 100, "candidates": 5}
    made = parser(__doc__, sizes | {"repeats": 5})
    add_encoder(made)
    made.add_argument(
        "--people", nargs="+", choices=PEOPLE, default=["colin27", "colin27-brain", "cranium"]
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
