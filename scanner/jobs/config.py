"""What the jobs are asked for: one value a job, made of one value a stage."""

from dataclasses import dataclass, field
from pathlib import Path

from deepssim_scan.encoder.architecture import ARCHITECTURES
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig
from deepssim_scan.matching.config import EvidenceConfig, VerdictConfig
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.training.config import ADAPTING, TrainingConfig


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """How an index is built; `restart` drops what an interrupted run left."""

    encoder: Path = BUNDLED
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    restart: bool = False


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How synthetic images are judged; `restart` drops what an interrupted run left."""

    ingest: IngestConfig = field(default_factory=IngestConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    restart: bool = False


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
    architecture: str = "small"
    training: TrainingConfig = ADAPTING
    ingest: IngestConfig = field(default_factory=IngestConfig)
    resume: bool = False

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"architecture must be one of {', '.join(ARCHITECTURES)}, "
                f"found {self.architecture!r}"
            )
