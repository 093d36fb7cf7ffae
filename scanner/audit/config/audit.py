"""What an audit is asked for: audit.toml, checked as a whole before anything is done.

audit.toml -> AuditConfig; paths in it are relative to its folder
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from deepssim_scan.audit.config.conditions import Condition
from deepssim_scan.audit.config.quantities import KINDS
from deepssim_scan.audit.config.toml import Part, as_tuple, read_toml
from deepssim_scan.errors import InputError
from deepssim_scan.execution import Scheduler
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import MAX_PIXELS, ReadOptions, read_key
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.matching.config import CANDIDATES, MIN_RECALL, CanaryConfig, VerdictConfig
from deepssim_scan.progress import SILENT, Progress

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _path(value: Any, info: ValidationInfo[dict[str, Path]]) -> Path:
    """Return a path of the file, which is relative to its folder."""
    if not isinstance(value, str):
        raise InputError(f"must be a path in quotes, found {value!r}")
    if not value or "\0" in value:
        raise InputError(f"is no path: {value!r}")
    return info.context["folder"] / value


def _condition(value: Any) -> Condition:
    if not isinstance(value, str):
        raise InputError(f"must be a condition in quotes, found {value!r}")
    return Condition.parse(value, KINDS)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise InputError(f"must be letters, digits, '.', '_' and '-', 64 at most, found {value!r}")
    return value


def _patterns(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


FilePath = Annotated[Path, BeforeValidator(_path)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
Conditions = Annotated[
    tuple[Annotated[Condition, BeforeValidator(_condition)], ...], BeforeValidator(as_tuple)
]


class Images(Part):
    """A folder of images, and how it is read: the options of the commands of the same names."""

    images: FilePath
    include: Patterns = ()
    exclude: Patterns = ()
    manifest: FilePath | None = None
    axis: int | None = None
    slices: str | None = None
    window: str | None = None
    max_pixels: int = MAX_PIXELS

    @model_validator(mode="after")
    def _readable(self) -> Self:
        self.ingest(b"")
        return self

    def ingest(self, key: bytes) -> IngestConfig:
        """Return how the folder is read, subjects hashed under a key."""
        selection = Selection(self.include, self.manifest, self.exclude)
        return IngestConfig(
            selection, ReadOptions(self.axis, self.slices, self.window, self.max_pixels, key)
        )


class Training(Images):
    """The training images, and their index."""

    index: FilePath
    subject_regex: str | None = None
    subject_key: FilePath | None = None
    holdout: FilePath | None = None
    adapt: Literal["auto", "always", "never"] = "auto"
    index_type: str = SearchConfig().kind
    recall: Annotated[float, Field(gt=0, lt=1)] = SearchConfig().recall

    def ingest(self, key: bytes) -> IngestConfig:
        """Return how the folder is read, subjects hashed under a key."""
        read = super().ingest(key)
        return IngestConfig(read.selection, read.read_options, self.subject_regex)

    def key(self) -> bytes:
        """Read the secret under which subjects are hashed; InputError where it cannot be."""
        return b"" if self.subject_key is None else read_key(self.subject_key)


class Synthetic(Images):
    """A set of synthetic images."""

    name: Annotated[str, AfterValidator(_name)]


class Policy(Part):
    """What makes a night fail or warn, and how images are judged."""

    fail_if: Conditions = (Condition.parse("duplicates > 0", KINDS),)
    warn_if: Conditions = (Condition.parse("training_gone > 0", KINDS),)
    false_alarm: float | None = None
    canaries: int = CanaryConfig().count
    min_canary_recall: float | None = None
    min_recall: Annotated[float, Field(ge=0, le=1)] = MIN_RECALL
    readers: Annotated[int, Field(ge=1, le=9)] = 2
    waivers: FilePath | None = None

    @model_validator(mode="after")
    def _judged(self) -> Self:
        self.verdict, self.planted  # noqa: B018 - raise where a value cannot be
        return self

    @property
    def verdict(self) -> VerdictConfig:
        """How images are judged; all candidates are listed, since a waiver answers for some."""
        return VerdictConfig(top_k=CANDIDATES, false_alarm=self.false_alarm)

    @property
    def planted(self) -> CanaryConfig:
        """The canaries of every set."""
        return CanaryConfig(self.canaries, self.min_canary_recall)


class History(Part):
    """Where what was found is kept, and for how long."""

    path: FilePath
    keep_days: Annotated[int, Field(ge=1, le=36_500)] = 365


class Report(Part):
    """What the pages show: pictures of patients, and names or pseudonyms under a key."""

    thumbnails: bool = False
    pseudonyms: FilePath | None = None

    def key(self) -> bytes:
        """Read the secret of the pseudonyms; InputError where it cannot be used."""
        return b"" if self.pseudonyms is None else read_key(self.pseudonyms)


class Dossier(Part):
    """What people state for the record of a release; what is not given is a visible gap."""

    purpose: str | None = None
    recipient: str | None = None
    exclusions: str | None = None
    checkpoint: str | None = None
    epochs: str | None = None
    seeds: str | None = None
    privacy: str | None = None
    tried: str | None = None
    not_tried: str | None = None
    tried_by: str | None = None
    residual_risk: str | None = None
    conditions: str | None = None
    signer: str | None = None
    review_date: str | None = None


class Machine(Part):
    """What an audit runs with."""

    device: str = "auto"
    workers: Annotated[int, Field(ge=1)] | None = None
    scheduler: str | None = None
    insecure: bool = False

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.run()
        return self

    def run(self, progress: Progress = SILENT) -> RunContext:
        """Return what jobs run with."""
        cluster = None if self.scheduler is None else Scheduler(self.scheduler, self.insecure)
        return RunContext(self.device, self.workers, progress=progress, scheduler=cluster)


class AuditConfig(Part):
    """audit.toml."""

    training: Training
    synthetic: Annotated[tuple[Synthetic, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    policy: Policy = Policy()
    history: History
    report: Report = Report()
    dossier: Dossier = Dossier()
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [each.name.lower() for each in self.synthetic]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two synthetic sets have the name {name!r}: give each its own")
        index, history = self.training.index, self.history.path
        if history.resolve().is_relative_to(index.resolve()):
            raise InputError(
                f"history.path ({history}) lies in training.index ({index}), which is replaced as "
                "a whole and holds nothing else. Choose a folder beside it"
            )
        written = {"training.index": index, "history.path": history}
        read = {f"synthetic {each.name!r}": each.images for each in self.synthetic}
        read["training.images"] = self.training.images
        if self.training.holdout is not None:
            read["training.holdout"] = self.training.holdout
        for what, path in written.items():
            for other, images in read.items():
                if path.resolve().is_relative_to(images.resolve()):
                    raise InputError(
                        f"{what} ({path}) lies in the images of {other}: what an audit writes "
                        "would be read as an image. Choose a folder beside them"
                    )
        holdout = read.pop("training.holdout", None)
        for other, images in read.items():
            if holdout is not None and _overlap(holdout, images):
                raise InputError(
                    f"training.holdout ({holdout}) and the images of {other} ({images}) hold the "
                    "same images: hold-out images are of other people, and none is synthetic"
                )
        return self


def _overlap(one: Path, other: Path) -> bool:
    """Tell whether a folder is another, or lies in it, or the other way round."""
    first, second = one.resolve(), other.resolve()
    return first.is_relative_to(second) or second.is_relative_to(first)


def read_config(path: Path) -> AuditConfig:
    """Return what audit.toml asks for.

    Raises InputMissing when it is not there, InputError with a line for every mistake.
    """
    return read_toml(path, AuditConfig)
