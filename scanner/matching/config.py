"""Which pairs are verified, and by which rule they are judged."""

from dataclasses import dataclass, field
from pathlib import Path

from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config.read_options import check_key

CANDIDATES = 8
"""Candidates of every synthetic image that are verified, by default."""

MIN_RECALL = 0.99
"""Share of the best matches that an approximate search must find, by default."""

RULES = ("calibrated", "reference")
"""How pairs are judged: by the index's calibration, or by the cosine similarity as in the paper."""

REFERENCE_SCORES = 0.60, 0.85
"""Cosine similarities above which the reference's rule calls a pair similar, and a duplicate."""


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """Which pairs are verified.

    Each synthetic image is embedded in `tta_views` test-time views. Its `candidates` most similar
    training images are registered with it, unless `verify` is false. `training` is where the
    training images are now; None: where they were when they were indexed. Of an approximate search
    at least the share `min_recall` of the best matches (by its lower bound) must be found, or the
    run is not complete.
    """

    candidates: int = CANDIDATES
    tta_views: int = len(TTA_VIEWS)
    verify: bool = True
    training: Path | None = None
    min_recall: float = MIN_RECALL

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"candidates must be >= 1, found {self.candidates}")
        if not 1 <= self.tta_views <= len(TTA_VIEWS):
            raise InputError(f"tta_views must be 1 to {len(TTA_VIEWS)}, found {self.tta_views}")
        if not 0 <= self.min_recall <= 1:
            raise InputError(f"min_recall must lie between 0 and 1, found {self.min_recall:g}")
        if self.training is not None and not self.verify:
            raise InputError(
                f"training ({self.training}) names images to verify with, and verify is false: "
                "give one of the two"
            )


@dataclass(frozen=True, slots=True)
class VerdictConfig:
    """How pairs are judged.

    `top_k` matches of every image are reported, the strongest first. `rule` is one of `RULES`.
    `false_alarm` is the share of non-members that the calibrated rule may flag; None: 0.001, or
    the smallest share that the calibration supports. `similar` and `duplicate` are the scores of
    the reference's rule; None: the paper's, 0.60 and 0.85.
    """

    top_k: int = 5
    rule: str = "calibrated"
    false_alarm: float | None = None
    similar: float | None = None
    duplicate: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"top_k must be >= 1, found {self.top_k}")
        if self.rule not in RULES:
            raise InputError(f"rule must be one of {', '.join(RULES)}, found {self.rule!r}")
        if self.false_alarm is not None and not 0 < self.false_alarm < 1:
            raise InputError(f"false_alarm must lie between 0 and 1, found {self.false_alarm:g}")
        scores = self.similar is not None or self.duplicate is not None
        if self.rule == "calibrated" and scores:
            raise InputError("similar and duplicate are scores of the rule 'reference': give both")
        if self.rule == "reference" and self.false_alarm is not None:
            raise InputError(
                "false_alarm is of the rule 'calibrated'; 'reference' has no such rate"
            )


@dataclass(frozen=True, slots=True)
class PageConfig:
    """What report.html shows.

    `thumbnails`: pictures of the findings, which are of patients. `pseudonyms`: a secret under
    which names are replaced by such that tell nobody anything; b"": names as they are.
    """

    thumbnails: bool = False
    pseudonyms: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        check_key("pseudonyms", self.pseudonyms)


@dataclass(frozen=True, slots=True)
class CanaryConfig:
    """How many copies of training images every query plants, to see that they are found.

    The run is not complete when fewer than the share `least` are found; None: fewer than chance
    explains, by what the calibration found.
    """

    count: int = 200
    least: float | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError(f"count must be >= 0, found {self.count}")
        if self.least is not None and not 0 <= self.least <= 1:
            raise InputError(f"least must be 0 to 1, found {self.least:g}")
        if self.least is not None and not self.count:
            raise InputError(f"least ({self.least:g}) is of canaries, and count is 0: plant some")
