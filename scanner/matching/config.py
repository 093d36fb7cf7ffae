"""Which pairs are verified, and by which rule they are judged."""

from dataclasses import dataclass
from pathlib import Path

from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError

CANDIDATES = 5
"""Candidates of every synthetic image that are verified, by default."""


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """Which pairs are verified.

    Each synthetic image is embedded in `tta_views` test-time views. Its `candidates` most similar
    training images are registered with it, unless `verify` is false. `training` is where the
    training images are now; None: where they were when they were indexed.
    """

    candidates: int = CANDIDATES
    tta_views: int = len(TTA_VIEWS)
    verify: bool = True
    training: Path | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"candidates must be >= 1, found {self.candidates}")
        if not 1 <= self.tta_views <= len(TTA_VIEWS):
            raise InputError(f"tta_views must be 1 to {len(TTA_VIEWS)}, found {self.tta_views}")
        if self.training is not None and not self.verify:
            raise InputError(
                f"training ({self.training}) names images to verify with, and verify is false: "
                "give one of the two"
            )


@dataclass(frozen=True, slots=True)
class VerdictConfig:
    """How pairs are judged; a threshold of None is the encoder's own.

    `top_k` matches of every image are reported, the strongest first.
    """

    top_k: int = 5
    similar: float | None = None
    duplicate: float | None = None
    ssim: float | None = None
    high_ssim: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k must be >= 1, found {self.top_k}")
