"""Thresholds of the cosine similarity and of the SSIM after registration."""

from dataclasses import dataclass

from deepssim_scan.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The scores above which a match is `similar`, and above which it is `duplicate`.

    A pair that was registered is a duplicate when its SSIM is above `high_ssim`, whatever its
    score, or above `ssim` with a score above `duplicate`. The defaults of the scores are the
    reference's (arXiv:2509.16582). A copy with noise of 5 % of the range has an SSIM above the
    default of `ssim`; one that was rotated, shifted or compressed, above that of `high_ssim`.
    """

    similar: float = 0.60
    duplicate: float = 0.85
    ssim: float = 0.80
    high_ssim: float = 0.95

    def __post_init__(self) -> None:
        if not -1 <= self.similar <= self.duplicate <= 1:
            raise CheckpointError(
                f"thresholds must satisfy -1 <= similar <= duplicate <= 1, "
                f"found similar {self.similar:g}, duplicate {self.duplicate:g}"
            )
        if not -1 <= self.ssim <= self.high_ssim <= 1:
            raise CheckpointError(
                f"thresholds must satisfy -1 <= ssim <= high_ssim <= 1, "
                f"found ssim {self.ssim:g}, high_ssim {self.high_ssim:g}"
            )
