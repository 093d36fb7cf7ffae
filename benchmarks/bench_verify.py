"""Verified pairs, on people that no encoder here was trained on: what registration finds.

The images are those of `bench_accuracy`: a training set of a person and their deformations, and
copies of its images.

(a) registration: of copies with planted flips, rotations and all other changes, how many come
    back with the right flip, and with the angle within half a degree (not asked of warps, which
    turn parts of an image);
(b) candidates: the encoder's best k of each copy, ranked anew by SSIM: whether the source is first,
    and whether the greatest SSIM tells copies from the person's non-members better than the score
    (AUC, and the share of the copies above what 0.1 % of the non-members reach);
(c) non-members: how many of them are called duplicates, by the default thresholds: further
    deformations of the person, and, apart, another volume with its deformations: the MNI152
    template, which the bundled encoder was trained on, and so may know to be none of these;
(d) pairs of 128x128 registered a second, on the CPU.

    python benchmarks/bench_verify.py
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from baselines import Scores, of_encoder
from bench_accuracy import auc, draw, true_positives
from harness import Spread, add_encoder, console, parser, rates, seconds, standardised, write
from held_out import SIDE, TURNS, Grey, person
from numpy.typing import NDArray
from rich.table import Table

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.registration import Registration, register
from deepssim_scan.matching.decision import VERDICTS, judge, strongest_first

WITHIN = 0.5  # degrees
DUPLICATE = VERDICTS.index("duplicate")
FLIPS = {"horizontal flip": 1, "vertical flip": 2}
OTHERS = {  # the volume of other non-members
    "colin27": "mni152",
    "colin27-brain": "mni152",
    "cranium": "mni152-projected",
    "mni152": "inia19",
}
OTHER_SUBJECTS = 20  # of it
MEANS = ("flips", "source first, by score", "source first", "flagged")  # over kinds of copies
WARPED = "smooth warp, 1 pixel"


def main() -> None:
    """Measure, print and write."""
    options = _options()
    loaded = checkpoint.load(options.encoder)
    people = {name: measured(name, loaded.thresholds, options) for name in options.people}
    for name, found in people.items():
        show(name, found)
    speed = measure_speed(options)
    console.print(f"pairs registered: {speed['registration'].median:.0f} a second")
    ratios = {
        f"{name}: {what}": found[what]
        for name, found in people.items()
        for what in ("flips", "angles", "source first")
    }
    write("verify", options, speed, ratios, people=people, encoder=loaded.fingerprint)


def measured(name: str, thresholds: Thresholds, options: argparse.Namespace) -> dict[str, Any]:
    """Return what registration makes of one person's copies and non-members."""
    gallery, queries = draw(person(name), options)
    method = of_encoder("encoder", options.encoder, len(TTA_VIEWS))
    known = method.represent(gallery)

    def judged(images: Grey) -> tuple[Scores, Reranked]:
        scores = method.scores(method.represent_queries(images), known)
        return scores, reranked(images, gallery, scores, thresholds, options.candidates)

    other, first = person(OTHERS[name]), options.subjects + options.non_members
    others = [other.images(each) for each in (None, *range(first + 1, first + OTHER_SUBJECTS))]
    non_members = {
        "non-members": queries.non_members.reshape(options.non_members, -1, SIDE, SIDE),
        "non-members of another volume": np.stack(others),
    }
    flagged, alike = {}, {}
    for who, subjects in non_members.items():
        scores, found = judged(subjects.reshape(-1, SIDE, SIDE))
        by_score = judge(scores.max(1), thresholds) == DUPLICATE
        duplicates = (found.verdicts == DUPLICATE).reshape(len(subjects), -1)
        alike[who] = found.ssim
        flagged[who] = {
            "images": duplicates.size,
            "flagged": int(duplicates.sum()),
            "flagged by score alone": int(by_score.sum()),
            "subjects": len(subjects),
            "subjects of which one is flagged": int(duplicates.any(1).sum()),
        }
    kinds: dict[str, dict[str, float]] = {}
    of_copies = []
    for kind, images in queries.copies.items():
        sources = queries.sources[kind]
        scores, found = judged(images)
        truth = register(standardised(images), standardised(gallery[sources]))
        flip, angle = right_geometry(kind, truth)
        of_copies.append(found.ssim)
        kinds[kind] = {
            "flips": float(flip.mean()),
            "angles": float(angle.mean()),
            "SSIM, least": float(truth.ssim.min()),
            "SSIM, median": float(truth.ssim.median()),
            "AUC by SSIM": auc(found.ssim, alike["non-members"]),
            "source first, by score": float((scores.argmax(1) == sources).mean()),
            "source first": float((found.best == sources).mean()),
            "flagged": float((found.verdicts == DUPLICATE).mean()),
        }
    means = {what: float(np.mean([row[what] for row in kinds.values()])) for what in MEANS}
    means["angles"] = float(np.mean([kinds[kind]["angles"] for kind in kinds if kind != WARPED]))
    means["true positives by SSIM"] = true_positives(
        np.concatenate(of_copies), alike["non-members"]
    )
    return {**means, "flagged of": flagged, "kinds": kinds}


def right_geometry(kind: str, found: Registration) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of each copy of a kind whether its flip and its angle were found."""
    flip = found.flip.numpy() == FLIPS.get(kind, 0)
    return flip, np.abs(found.degrees.numpy() - TURNS.get(kind, 0.0)) <= WITHIN


@dataclass(frozen=True, slots=True)
class Reranked:
    """Of each image the best match after verification, its verdict, and the greatest SSIM."""

    best: NDArray[np.int64]
    verdicts: NDArray[np.int8]
    ssim: NDArray[np.float32]


def reranked(
    images: Grey, gallery: Grey, scores: Scores, thresholds: Thresholds, candidates: int
) -> Reranked:
    """Verify each image's best matches and rank them anew, as `query` does."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :candidates]
    best = np.take_along_axis(scores, rows, 1)
    ssim = np.full(best.shape, np.nan, np.float32)
    query, rank = np.indices(best.shape).reshape(2, -1)
    for part in np.array_split(np.arange(len(query)), -(-len(query) // 256) or 1):
        if len(part):
            pair = images[query[part]], gallery[rows[query[part], rank[part]]]
            ssim[query[part], rank[part]] = register(*map(standardised, pair)).ssim.numpy()
    verdicts = judge(best, thresholds, ssim)
    first = strongest_first(verdicts, ssim, best)[:, :1]
    chosen = (np.take_along_axis(each, first, 1)[:, 0] for each in (rows, verdicts))
    return Reranked(*chosen, np.nanmax(ssim, 1))


def measure_speed(options: argparse.Namespace) -> dict[str, Spread]:
    """Return how many pairs are registered a second: slices of pseudo-subjects with each other."""
    images = standardised(np.concatenate([person("mni152").images(each) for each in range(1, 7)]))
    torch.manual_seed(options.seed)
    taken = seconds({"registration": lambda: register(images, images.roll(1, 0))}, options.repeats)
    return rates(taken, len(images), "pairs")


def show(name: str, found: dict[str, Any]) -> None:
    """Print one person's table."""
    table = Table(title=f"{name}: verified pairs")
    table.add_column("kind of copy")
    columns = list(next(iter(found["kinds"].values())))
    for column in columns:
        table.add_column(column, justify="right")
    for kind, row in found["kinds"].items():
        table.add_row(kind, *(f"{row[column]:.3f}" for column in columns))
    console.print(table)
    for what in (*MEANS, "angles", "true positives by SSIM"):
        console.print(f"{what}: {found[what]:.4f}")
    for who, counts in found["flagged of"].items():
        console.print(f"{who}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))


def _options() -> argparse.Namespace:
    sizes = {"subjects": 100, "non_members": 60, "hardest": 1, "copies": 100, "candidates": 5}
    made = parser(__doc__, sizes | {"repeats": 5})
    add_encoder(made)
    made.add_argument(
        "--people", nargs="+", choices=OTHERS, default=["colin27", "colin27-brain", "cranium"]
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
