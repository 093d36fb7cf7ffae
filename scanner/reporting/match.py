"""One row of matches.parquet, for readers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Match:
    """A synthetic image, one of its most similar training images, and what is said of the two.

    `p_value` is the share of non-members whose `statistic` is at least as high; both are None
    where the rule has none. `ssim`, `ncc` and `lcn` are measures of the registered pair, on the
    part `foreground` of the pixels. `transform` is what makes the synthetic image of the training
    image: flip (one of `names.FLIPS`), scale, degrees counter-clockwise, right and down in
    pixels of 128, gamma, then a quarter turn clockwise, then inverted greys. `ssim_confirmed` tells
    whether the SSIM is above 0.80. All of them are None for a pair that was not registered.
    `subject` is whom the training image shows.
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
