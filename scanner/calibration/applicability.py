"""Whether the method fits the data: what makes two sets that do not go together, in words.

what was seen of both sides -> Mismatch, each with a code and advice

A run over sets that do not go together is quiet: next to nothing is similar, so next to nothing is
flagged. The bounds here were set on five pairs of sets of real and pseudo-people, and changed
copies of them (`benchmarks/bench_applicability.py`).
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.calibration.membership import Estimate
from deepssim_scan.imaging.looks import LOOKS, Looks

Scores = NDArray[np.float64]

FEWEST = 20
"""Images of a side, at least, to tell anything of it."""

_ROBUST = 1.4826  # median absolute deviations in a standard deviation
_FIRST = 0.9  # planted copies whose source is first, at least
_FOUND = 0.8  # planted copies that are flagged, at least
_INVERTED = 0.5  # share of the images that are nearer when they are inverted
_UNLIKE = 0.01  # quantile of the training images' scores with other people
_NEARER = 0.6  # chance that a training image is more like others than a hold-out image is; 0.5
_HUB = 0.25  # share of the images that one training image is nearest to
_BOUNDS = {
    "sharpness": (2.0, 0.1),
    "extent": (2.5, 0.15),
    "aspect": (1.5, 0.05),
    "brightest": (3.0, 0.5),
}
"""How many standard deviations, and how much, the medians of two sides may differ."""

_TURNED = ("aspect", "brightest")  # differ where the greys of one side are inverted


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that keeps the method from fitting: its code, what was seen, and what to do."""

    code: str
    text: str
    advice: str


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was seen of samples of both sides.

    looks (N, 4) of `LOOKS`; modes, of the training and of the synthetic images, and the windows by
    which they were read. `scores` (M,) are of synthetic images with their nearest training image,
    `inverted` is the share of some that are nearer when their greys are inverted, `others` (N,)
    are scores of training images with the nearest of another subject. `nearest` are the training
    rows nearest to synthetic images that are not flagged. `source_first` and `members` are those
    of the calibration, and `found` is the share of its planted copies that are flagged. None is not
    known. `both` is how many images of the hold-out are synthetic images.
    """

    training: Looks
    synthetic: Looks
    modes: tuple[Collection[str], Collection[str]]
    scores: Scores
    inverted: float | None
    others: Scores
    nearest: Sequence[int]
    source_first: float | None
    members: Estimate | None = None
    windows: tuple[str | None, str | None] = (None, None)
    both: int = 0
    found: float | None = None


def mismatches(seen: Seen) -> list[Mismatch]:
    """Tell what does not go together."""
    turned = _polarity(seen)
    every = [
        turned,
        *(_looks(seen, name) for name in LOOKS if not (turned and name in _TURNED)),
        _depth(seen),
        _unlike(seen),
        _hub(seen),
        _encoder(seen),
        _missed(seen),
        _holdout(seen),
        _both(seen),
    ]
    return [each for each in every if each is not None]


def _polarity(seen: Seen) -> Mismatch | None:
    if seen.inverted is None or seen.inverted <= _INVERTED:
        return None
    return Mismatch(
        "polarity_differs",
        f"{seen.inverted:.0%} of the synthetic images are nearer to training images when they "
        "are inverted.",
        "Bring both sides to one polarity.",
    )


_SAID = {
    "sharpness": ("less sharp", "sharper", "Bring both sides to one resolution before they are "
                  "compared. Where a generator blurs, a copy scores lower than its source would."),
    "extent": ("smaller in their frame", "larger in their frame", "Crop or pad both sides alike. "
               "Copies that are scaled by more than 15 % are not found."),
    "aspect": ("wider for their height", "taller for their width", "Resize both sides alike. Most "
               "copies of which one side alone is scaled by more than 10 % are not found."),
    "brightest": ("less clipped at the brightest grey", "clipped at the brightest grey more often",
                  "Give both sides one intensity window (--window)."),
}  # fmt: skip


def _looks(seen: Seen, name: str) -> Mismatch | None:
    """Compare the medians of a column of the looks."""
    ours, theirs = (each[:, LOOKS.index(name)] for each in (seen.synthetic, seen.training))
    if min(len(ours), len(theirs)) < FEWEST:
        return None
    middles = [float(np.median(each)) for each in (ours, theirs)]
    spreads = [
        _ROBUST * float(np.median(np.abs(each - middle)))
        for each, middle in zip((ours, theirs), middles, strict=True)
    ]
    apart, spread = middles[0] - middles[1], math.hypot(*spreads) / 2**0.5
    deviations, least = _BOUNDS[name]
    if abs(apart) < least or abs(apart) < deviations * spread:
        return None
    less, more, advice = _SAID[name]
    what = less if apart < 0 else more
    return Mismatch(f"{name}_differs", f"Synthetic images are {what} than training images.", advice)


def _depth(seen: Seen) -> Mismatch | None:
    sides = [
        [
            f"{mode} in the window {window}" if window and _has_window(mode) else mode
            for mode in each
        ]
        for each, window in zip(seen.modes, seen.windows, strict=True)
    ]
    deep = [any(map(_is_deep, each)) for each in sides]
    if deep[0] == deep[1]:
        return None
    training, synthetic = (", ".join(each) for each in sides)
    return Mismatch(
        "depth_differs",
        f"One side has more than 8 bits: training images are of mode {training}, synthetic images "
        f"of mode {synthetic}.",
        "If the 8-bit images show a window of a CT, give the other side the same --window: copies "
        "may not be found otherwise.",
    )


def _has_window(mode: str) -> bool:
    """Tell whether a window is applied to files of a mode."""
    return mode.startswith(("dicom:", "nifti:"))


def _is_deep(mode: str) -> bool:
    """Tell whether the samples of a mode have more than 8 bits, and are shown in no window."""
    if mode.endswith("int8") or " in the window " in mode:
        return False
    return ":" in mode or ";" in mode or mode in ("I", "F")


def _unlike(seen: Seen) -> Mismatch | None:
    if min(len(seen.scores), len(seen.others)) < FEWEST:
        return None
    bound, middle = float(np.quantile(seen.others, _UNLIKE)), float(np.median(seen.scores))
    if middle >= bound:
        return None
    return Mismatch(
        "unlike_training",
        f"Synthetic images are unlike all training images: their median score is {middle:.2f}, and "
        f"{1 - _UNLIKE:.0%} of the training images have another person's at {bound:.2f} or more.",
        "Check that the synthetic images are of the generator that was trained on these images.",
    )


def _hub(seen: Seen) -> Mismatch | None:
    if min(len(seen.nearest), len(seen.others)) < FEWEST:  # of few, one is near many by chance
        return None
    row, count = Counter(seen.nearest).most_common(1)[0]
    if (share := count / len(seen.nearest)) <= _HUB:
        return None
    return Mismatch(
        "hub",
        f"One training image (training_row {row} of matches.parquet) is the nearest to {share:.0%} "
        "of the images that are not flagged.",
        "Look at it. A blank or broken training image hides what others are nearest to.",
    )


def _encoder(seen: Seen) -> Mismatch | None:
    if seen.source_first is None or seen.source_first >= _FIRST:
        return None
    return Mismatch(
        "encoder_unfit",
        f"The encoder orders little on these images: the source of a planted copy is the most "
        f"similar training image in {seen.source_first:.0%}.",
        "Build the index with --adapt always, or train an encoder on these images.",
    )


def _missed(seen: Seen) -> Mismatch | None:
    """Tell a calibration that finds few copies: some of its non-members are as like as they are."""
    if seen.found is None or seen.found >= _FOUND:
        return None
    return Mismatch(
        "copies_missed",
        f"Many copies are missed: in the calibration {seen.found:.0%} of the planted ones were "
        "flagged.",
        "Look for people under several names, and for variants of training images (cropped, noisy "
        "or turned) under another subject or in the hold-out: copies are not told from them. Leave "
        "variants out, or make them one subject's (--subject-regex, --manifest). Where there are "
        "none, build the index with --adapt always.",
    )


def _holdout(seen: Seen) -> Mismatch | None:
    """Tell a hold-out that training images are not like, of which the lower 95 % bound speaks."""
    chance = seen.members
    if chance is None or chance.low <= _NEARER:
        return None
    return Mismatch(
        "holdout_differs",
        "The hold-out is unlike the training set: a training image, without its own subject, is "
        f"more like others than a hold-out image is with a chance of {chance.value:.0%} "
        f"({chance.low:.0%} to {chance.high:.0%}), and 50 % is right. More non-members may be "
        "flagged than is said.",
        "Draw the hold-out at random from where the training images are from, or calibrate without "
        "one. Where the training set shows a person under several names, say who is who.",
    )


def _both(seen: Seen) -> Mismatch | None:
    if not seen.both:
        return None
    return Mismatch(
        "holdout_synthetic",
        f"The hold-out holds synthetic images ({seen.both}), and counts copies among them as "
        "non-members: copies may pass.",
        "Leave synthetic images out of the hold-out, which shows people who are not in the "
        "training set, and calibrate again.",
    )
