"""One row of matches.parquet, for readers."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepssim_scan.ingest.record import ImageRecord


@dataclass(frozen=True, slots=True)
class Match:
    """A synthetic image, one of its most similar training images, and what is said of the two.

    `p_value` is the share of non-members whose `statistic` is at least as high; both are None
    where the rule has none. `ssim`, `ncc` and `lcn` are measures of the registered pair, on the
    part `foreground` of the pixels. `transform` is what makes the synthetic image of the training
    image: flip (one of `names.FLIPS`), scale, degrees counter-clockwise, right and down in
    pixels of 128, gamma, then a quarter turn clockwise, then inverted greys. `ssim_confirmed` tells
    whether the SSIM is above 0.80. All of them are None for a pair that was not registered.
    `subject` is whom the training image shows. `finding` names a pair whose verdict is duplicate,
    by the contents of the two images: it stays the same when files are renamed. All pairs of two
    volumes are one finding. `synthetic_row` and `training_row` are the rows of the two in their
    stores. `images` counts the flagged images of the finding, where it stands for all of them.
    """

    synthetic: str
    rank: int
    training: str
    score: float
    verdict: str
    ssim: float | None = None
    transform: dict[str, Any] | None = None
    ssim_confirmed: bool | None = None
    subject: str = ""
    p_value: float | None = None
    statistic: float | None = None
    ncc: float | None = None
    lcn: float | None = None
    foreground: float | None = None
    finding: str | None = None
    synthetic_row: int = -1
    training_row: int = -1
    images: int = 1


def finding_of(synthetic: ImageRecord, training: ImageRecord) -> str:
    """Return the name of a finding: 16 hexadecimal digits of the SHA-256 of what the two hold.

    Slices of a volume count as the volume. Where that copies single images of a subject, those are
    one, too.
    """
    of_subject = synthetic.in_volume and not training.in_volume and training.subject
    copied = ("subject", training.subject) if of_subject else _held(training)
    return hashlib.sha256("\0".join([*_held(synthetic), *copied]).encode()).hexdigest()[:16]


def _held(record: ImageRecord) -> tuple[str, str]:
    return record.sha256, "" if record.in_volume else record.frame


def strongest_of_each(matches: Sequence[Match]) -> list[Match]:
    """Return the first match of each finding, and of how many images the finding is."""
    images = Counter(match.finding for match in matches)
    first = {match.finding: match for match in reversed(matches)}
    return [
        replace(match, images=images[match.finding])
        for match in matches
        if first[match.finding] is match
    ]
