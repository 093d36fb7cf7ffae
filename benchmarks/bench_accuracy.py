"""How good the score is, on people that no encoder here was trained on.

For each person of `held_out`, whose images and deformations make a training set of 5,000, or for
each folder of people's images:

(a) score against SSIM: mean absolute error and correlation, over pairs spread evenly over the
    SSIM range, as they are (aligned) and each augmented as the reference does;
(b) copies found: training images changed in 15 ways, against non-members, which are the same
    views of other deformations of the person. A query's score is that of its best match. AUC and
    recall@1 by kind of change (of n best matches that tie, the source counts 1/n; the encoder
    scores as `query` does, by the best of its views); over all kinds, the TPR at 0.1 % FPR. Beside
    it, how many of the hardest non-members are above that score (the same person 3 mm or 1.8
    degrees beside a training image). In a folder every image is a non-member, among those of all
    other people, and two kinds of change are added;
(c) images a second on the CPU, beside ConvNeXt-Base, and the size of the checkpoint.

Intervals are 95 %: Wilson's for recall, for the others from 1,000 bootstrap draws of the copies and
of the non-members' subjects. 0.1 % of the non-members are the three strongest of 3,000, and a
bootstrap never draws a stronger one: that interval is too narrow towards fewer true positives.

The person's deformations, and what changes copies, are of the kinds that the encoder and the
contrastive baseline are trained with, drawn anew; the person is not. Encoders are compared in one
run (`--also`).

    python benchmarks/bench_accuracy.py --people colin27 cranium
    python benchmarks/bench_accuracy.py --people mni152 inia19 --only encoder   # to develop on
    python benchmarks/bench_accuracy.py --folder DIR --people-from folder --only encoder
    python benchmarks/bench_accuracy.py --folder DIR --only canonical sketch   # what poses leave
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_sets import BINS, Images, Pairs, Queries, Set, of_folder, of_person
from baselines import (
    BATCH,
    Method,
    Scores,
    canonical_ssim,
    contrastive,
    efficientnet_lite0,
    of_encoder,
    perceptual_hash,
    pixel_correlation,
    raw_ssim,
    ssim_sketch,
)
from harness import (
    Spread,
    add_encoder,
    console,
    parser,
    rates,
    seconds,
    wilson,
    write,
)
from held_out import PEOPLE, SIDE, person
from numpy.typing import NDArray
from rich.table import Table

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import REFERENCE
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.storage.files import sha256

FALSE_POSITIVES = 0.001
DRAWS = 1_000
METHODS: dict[str, Callable[[], Method]] = {
    "ssim": raw_ssim,
    "correlation": pixel_correlation,
    "hash": perceptual_hash,
    "lite0": efficientnet_lite0,
}
BEHIND_POSES: dict[str, Callable[[Path], Method]] = {
    "canonical": canonical_ssim,
    "sketch": ssim_sketch,
}


Sample = NDArray[Any] | list[NDArray[Any]]
"""Items that are drawn anew: numbers, or the numbers of each person."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Show the number and its interval."""
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def main() -> None:
    """Measure every method on every person, print the tables and write them."""
    options = _options()
    methods = [of_encoder("encoder", options.encoder, options.views)]
    methods += [METHODS[name]() for name in options.only if name in METHODS]
    methods += [m(options.encoder) for name, m in BEHIND_POSES.items() if name in options.only]
    methods += [of_encoder(name, path, options.views) for name, path in options.also]
    methods += [contrastive(options.contrastive)] if options.contrastive else []
    people = {}
    sets: dict[str, Callable[[], Set]] = {
        folder.name: partial(of_folder, folder, options) for folder in options.folder
    } or {name: partial(of_person, person(name), options) for name in options.people}
    for name, draw in sets.items():
        gallery, queries, pairs = draw()
        counts = np.bincount((pairs.ssim.clip(0, 0.999) * BINS).astype(int), minlength=BINS)
        console.print(f"{name}: {len(pairs.ssim)} pairs, by SSIM in steps of 0.05: {counts}")
        people[name] = {m.name: measured(m, gallery, queries, pairs, options) for m in methods}
        show(name, people[name])
    speed = {} if options.no_speed else measure_speed(options)
    ratios = {}
    if speed:
        others = [name for name in speed if name != "encoder"]
        ratios = {f"encoder / {o}": speed["encoder"].median / speed[o].median for o in others}
        console.print("images/s:", {name: f"{ratio:.3g}" for name, ratio in ratios.items()})
    loaded = checkpoint.load(options.encoder)
    facts = {"encoder": loaded.fingerprint, "checkpoint_bytes": options.encoder.stat().st_size}
    others = [*options.also, *[("contrastive", options.contrastive)] * bool(options.contrastive)]
    facts["others"] = {name: sha256(path) for name, path in others}
    write(options.result, options, speed, ratios, people=people, **facts)


def measured(
    method: Method, gallery: Images, queries: Queries, pairs: Pairs, options: argparse.Namespace
) -> dict[str, Any]:
    """Return all that one method reaches on one training set."""
    rng = np.random.default_rng(options.seed)
    representations = method.represent(gallery)
    others = method.scores(method.represent_queries(queries.non_members), representations)
    others[queries.others[:, None] == queries.people] = -1  # of their own person
    by_person = [others[queries.others == each].max(1) for each in np.unique(queries.others)]
    non_members = np.concatenate(by_person)
    hardest = np.empty(0, np.float32)
    if len(queries.hardest):
        hardest = method.scores(method.represent_queries(queries.hardest), representations).max(1)
    best, found = {}, {}
    for kind, images in queries.copies.items():
        scores = method.scores(method.represent_queries(images), representations)
        best[kind] = scores.max(1)
        found[kind] = _source_first(scores, queries.sources[kind])
    every, hits = np.concatenate(list(best.values())), np.concatenate(list(found.values()))
    bound = _bound(non_members)
    return {
        "auc": {
            kind: asdict(_bootstrap(auc, (scores, by_person), rng)) for kind, scores in best.items()
        },
        "recall": {kind: asdict(_share(hits)) for kind, hits in found.items()},
        "true positives": asdict(_bootstrap(true_positives, (every, by_person), rng)),
        "recall, all": asdict(_share(hits)),
        "hardest non-members above": float((hardest > bound).mean()) if len(hardest) else None,
        "true positives by kind": {k: float((s > bound).mean()) for k, s in best.items()},
        **{f"SSIM, {how}": agreement(method, pairs, how, rng) for how in ("aligned", "augmented")},
    }


def _source_first(scores: Scores, sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """Say which queries have their source as the best match: 1 / n where it is one of n."""
    best = scores == scores.max(1, keepdims=True)
    first: NDArray[np.float64] = best[np.arange(len(sources)), sources] / best.sum(1)
    return first


def auc(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Return the probability that a positive scores above a negative; ties count half."""
    ordered = np.sort(negative, axis=None)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / negative.size)


def true_positives(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Return the share of positives above the score that 0.1 % of the negatives pass."""
    return float((positive > _bound(negative)).mean())


def _bound(negative: NDArray[np.floating]) -> float:
    return float(np.quantile(negative, 1 - FALSE_POSITIVES, method="higher"))


def _share(hits: NDArray[np.floating]) -> Figure:
    return Figure(float(hits.mean()), *wilson(float(hits.sum()), len(hits)))


def _bootstrap(
    figure: Callable[..., float], samples: Sequence[Sample], rng: np.random.Generator
) -> Figure:
    """Return a figure of samples, with its interval over draws of their items."""
    drawn = [
        figure(*(_items(sample, rng.integers(len(sample), size=len(sample))) for sample in samples))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = figure(*(_items(sample, range(len(sample))) for sample in samples))
    return Figure(value, float(low), float(high))


def _items(sample: Sample, which: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
    """Return items of a sample, one after the other where each is of several numbers."""
    if isinstance(sample, list):
        return np.concatenate([sample[each] for each in which])
    return sample[np.asarray(which)]


def agreement(
    method: Method, pairs: Pairs, how: str, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return how far a method's scores are from the SSIM, and how they go along with it."""
    first, second = getattr(pairs, how)
    scores = method.pairs(method.represent_queries(first), method.represent(second)).numpy()
    both = np.stack([scores, pairs.ssim], 1)
    return {
        "error": asdict(
            _bootstrap(lambda rows: float(np.abs(rows[:, 0] - rows[:, 1]).mean()), (both,), rng)
        ),
        "correlation": asdict(
            _bootstrap(lambda rows: float(np.corrcoef(rows.T)[0, 1]), (both,), rng)
        ),
    }


def measure_speed(options: argparse.Namespace) -> dict[str, Spread]:
    """Return the rates of the forward pass, taken in turns."""
    loaded = checkpoint.load(options.encoder)
    torch.manual_seed(options.seed)
    side = loaded.architecture.standardisation.size or SIDE
    images = restandardise(torch.randn(BATCH * 4, side, side))
    base = Encoder(REFERENCE)
    encoders = {"encoder": loaded.encoder} | {
        name: checkpoint.load(path).encoder for name, path in options.also
    }
    sides = {name: partial(embed, encoder, images) for name, encoder in encoders.items()}
    sides["ConvNeXt-Base"] = partial(embed, base, images[:BATCH])
    taken = seconds(sides, options.repeats)
    slowest = {"ConvNeXt-Base": taken.pop("ConvNeXt-Base")}
    return rates(taken, len(images), "images") | rates(slowest, BATCH, "images")


def show(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Print one person's tables."""
    for what in ("auc", "recall"):
        table = Table(title=f"{name}: {what} by kind of copy")
        table.add_column("kind of copy")
        for method in found:
            table.add_column(method, justify="right")
        for kind in next(iter(found.values()))[what]:
            table.add_row(kind, *(str(Figure(**each[what][kind])) for each in found.values()))
        console.print(table)
    table = Table(title=f"{name}: over all")
    table.add_column("")
    for method in found:
        table.add_column(method, justify="right")
    for what in ("true positives", "recall, all"):
        table.add_row(what, *(str(Figure(**each[what])) for each in found.values()))
    if all(m["hardest non-members above"] is not None for m in found.values()):
        hardest = (f"{m['hardest non-members above']:.3f}" for m in found.values())
        table.add_row("hardest non-members above", *hardest)
    for how in ("aligned", "augmented"):
        for what in ("error", "correlation"):
            figures = (str(Figure(**each[f"SSIM, {how}"][what])) for each in found.values())
            table.add_row(f"SSIM, {how}: {what}", *figures)
    console.print(table)


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


def _options() -> argparse.Namespace:
    sizes = {"subjects": 100, "non_members": 60, "hardest": 10, "copies": 100}
    sizes |= {"pairs": 2_000, "pair_subjects": 20, "repeats": 7, "views": len(TTA_VIEWS)}
    made = parser(__doc__, sizes)
    add_encoder(made)
    made.add_argument("--folder", nargs="+", type=Path, default=[], help="people's images instead")
    made.add_argument("--people-from", choices=["folder", "file"], default="folder")
    made.add_argument("--people", nargs="+", choices=PEOPLE, default=["colin27", "cranium"])
    made.add_argument(
        "--only",
        nargs="*",
        choices=[*METHODS, *BEHIND_POSES, "encoder"],
        default=list(METHODS),
        help="baselines",
    )
    made.add_argument(
        "--also",
        nargs="*",
        type=_named,
        default=[],
        metavar="NAME=FILE",
        help="checkpoints of further encoders; one that is not invariant to flips has one view",
    )
    made.add_argument("--contrastive", type=Path, help="weights that contrastive.py wrote")
    made.add_argument("--no-speed", action="store_true", help="leave (c) out")
    made.add_argument("--result", default="accuracy", help="name of the result (accuracy)")
    return made.parse_args()


if __name__ == "__main__":
    main()
