"""What the jobs are asked for: one value a job, made of one value a stage."""

from dataclasses import dataclass, field
from pathlib import Path

from deepssim_scan.encoder.architecture import ARCHITECTURES
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import InputError
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.matching.config import (
    CANDIDATES,
    CanaryConfig,
    EvidenceConfig,
    PageConfig,
    VerdictConfig,
)
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.training.config import ADAPTING, TrainingConfig

ADAPT = ("auto", "always", "never")
"""When the encoder is adapted to the training set."""

_SMALL = "small"


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """How an index is built; `restart` drops what an interrupted run left.

    An index that is there, and was built with the same options, is updated: what did not change is
    taken from it, unless `rebuild` is true.

    The index is calibrated unless `calibrate` is false. `adapt` is one of `ADAPT`: "auto" adapts
    the encoder to the training set where copies are not found as they should be, "always" does so
    anyway, "never" keeps the encoder as it is. `search` is the type of the index.
    """

    encoder: Path = BUNDLED
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    calibrate: bool = True
    adapt: str = "auto"
    search: SearchConfig = field(default_factory=SearchConfig)
    rebuild: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        if self.adapt not in ADAPT:
            raise InputError(f"adapt must be one of {', '.join(ADAPT)}, found {self.adapt!r}")
        if self.adapt == "always" and not self.calibrate:
            raise InputError("adapt 'always' needs calibrate: the better encoder is kept")


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """How an index is calibrated.

    `training` is where the training images are now; None: where they were when they were indexed.
    `holdout` is a folder of images of people who are not in the training set, read as `ingest`
    says; None: training images, each without its own subject.
    """

    training: Path | None = None
    holdout: Path | None = None
    ingest: IngestConfig = field(default_factory=IngestConfig)
    candidates: int = CANDIDATES
    tta_views: int = len(TTA_VIEWS)
    seed: int = 0

    def __post_init__(self) -> None:
        EvidenceConfig(self.candidates, self.tta_views)  # which checks them
        if self.seed < 0:
            raise InputError(f"seed must be >= 0, found {self.seed}")


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How synthetic images are judged; `restart` drops what an interrupted run left.

    What did not change is taken from the report in place, unless `rebuild` is true.
    """

    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
    page: PageConfig = field(default_factory=PageConfig)
    rebuild: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        if self.evidence.verify and self.verdict.rule == "calibrated":
            return
        for name, value in (
            ("false_alarm", self.verdict.false_alarm),
            ("the least share of canaries", self.canaries.least),
        ):
            if value is not None:
                raise InputError(
                    f"{name} ({value:g}) is of verdicts by the calibration: leave it away, or do "
                    "without no-verify and the rule 'reference'"
                )


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Where a repair takes images and encoder from; None: where the store says they were."""

    images: Path | None = None
    encoder: Path | None = None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What is trained, on what.

    `initial` is the checkpoint that training starts from; None: random weights of `architecture`,
    "small" or "base". `resume` goes on from where a killed run stopped.
    """

    initial: Path | None = BUNDLED
    architecture: str = _SMALL
    training: TrainingConfig = ADAPTING
    ingest: IngestConfig = field(default_factory=IngestConfig)
    resume: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"architecture must be one of {', '.join(ARCHITECTURES)}, "
                f"found {self.architecture!r}"
            )
        if self.initial is not None and self.architecture != _SMALL:
            raise InputError(
                f"architecture {self.architecture!r} goes with initial None: the checkpoint that "
                "training starts from has an architecture of its own"
            )
