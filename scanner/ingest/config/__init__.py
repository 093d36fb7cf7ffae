"""What is read of a folder, and which device, processes and limits a run uses."""

import hashlib
import hmac
import os
import re
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deepssim_scan.errors import InputError
from deepssim_scan.execution import Scheduler, open_executor
from deepssim_scan.ingest.config.limits import Limits
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.progress import SILENT, Progress
from deepssim_scan.storage.files import sha256

if TYPE_CHECKING:
    from deepssim_scan.execution.answer import Answer
    from deepssim_scan.execution.executor import Block, Executor, T

_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of drivers; the second of WSL, third AMD

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class IngestConfig:
    """Which files of a folder are read, how, and whose images they are.

    `subject_regex`, searched for in the path of an image, tells its subject: by its group, or by
    all that it matches. Raises InputError when it is no regular expression with one group at most.
    """

    selection: Selection = field(default_factory=Selection)
    read_options: ReadOptions = field(default_factory=ReadOptions)
    subject_regex: str | None = None

    def __post_init__(self) -> None:
        if self.subject_regex is not None:
            _check_regex(self.subject_regex)

    def source(self, folder: Path) -> dict[str, Any]:
        """Return what a store records of where its images are and how they were read.

        The subject key is not in it, only a hash that shows when another key is used.
        """
        options = asdict(self.read_options)
        key = options.pop("subject_key")
        mark = hmac.new(key, b"deepssim-scan subject key", hashlib.sha256).hexdigest()
        manifest = self.selection.manifest
        return {
            "folder": str(folder.absolute()),
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            "manifest": str(manifest.absolute()) if manifest else None,
            "manifest_sha256": sha256(manifest) if manifest else None,
            "read_options": options,
            "subject_regex": self.subject_regex,
            "subject_key": mark if key else None,
        }


def _check_regex(regex: str) -> None:
    wanted = r"must be a regular expression with one group at most, as in '(sub-\d+)/'"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # what a later Python reads otherwise
            groups = re.compile(regex).groups
    except (re.error, FutureWarning, OverflowError, RecursionError) as error:
        raise InputError(f"subject_regex ({regex!r}) {wanted}: {error}") from error
    if groups > 1:
        raise InputError(f"subject_regex ({regex!r}) {wanted}: found {groups} groups")


def _gpus() -> int:
    """Return how many GPUs this machine has."""
    if _picked("auto") == "cpu":
        return 0
    from deepssim_scan.imaging.devices import count_gpus

    return count_gpus()


def _picked(device: str) -> str:
    """Return "cpu" or "cuda"; most machines have no GPU, and need not load torch to tell."""
    if device == "cpu" or (device == "auto" and not any(map(os.path.exists, _GPU_FILES))):
        return "cpu"
    from deepssim_scan.imaging.devices import pick_device

    return pick_device(device)


@dataclass(frozen=True, slots=True)
class RunContext:
    """The means of a run, none of which changes its result.

    `device` runs the networks: "cpu", "cuda", or "auto" for a GPU if there is one. `workers`
    processes decode and compute, with None one a core, or four a GPU; with 0 this process does,
    without limits. With a `scheduler` the workers are those of its cluster, at most `workers` of
    them. `executor` is what they are run by, where it is open.
    """

    device: str = "auto"
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    progress: Progress = SILENT
    scheduler: Scheduler | None = None
    executor: "Executor | None" = None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {', '.join(DEVICES)}, found {self.device!r}")
        least = 0 if self.scheduler is None else 1
        if self.workers is not None and self.workers < least:
            raise InputError(f"workers must be >= {least}, found {self.workers}")

    @property
    def isolation(self) -> Limits | None:
        """The limits under which a process beside each worker decodes; None where none does."""
        return None if self.workers == 0 else self.limits

    @property
    def device_here(self) -> str:
        """What this process computes with itself: "cpu" or "cuda"."""
        elsewhere = self.scheduler is not None and self.device == "cuda"
        return _picked("auto" if elsewhere else self.device)

    @property
    def device_of_blocks(self) -> str:
        """What blocks compute with: "cpu", or "cuda" where every worker has a GPU.

        Raises InputError where there must be a GPU and is none.
        """
        if self.scheduler is None:
            return self.device_here
        with self._working() as executor:
            if self.device == "cuda" and not executor.gpu:
                raise InputError("device cuda was asked for, and not every worker has a GPU.")
            return "cuda" if executor.gpu and self.device != "cpu" else "cpu"

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """Give the run with its workers, which end with the block unless they were open already."""
        with self._working() as executor:
            yield replace(self, executor=executor)

    def map(self, block: "Block[T]", tasks: "Iterable[T]") -> "Generator[Answer, None, None]":
        """Run blocks (`Executor.map`), by workers of their own where none are open."""
        told: set[str] = set()
        with self._working() as executor, closing(executor.map(block, tasks)) as answers:
            for answer in answers:
                for text in answer.warnings:
                    if text not in told:
                        told.add(text)
                        self.progress.warn(text)
                yield answer

    @contextmanager
    def _working(self) -> "Iterator[Executor]":
        if self.executor is not None:
            yield self.executor
            return
        gpus = 0 if self.scheduler or self.device == "cpu" else _gpus()
        executor = open_executor(self.workers, self.scheduler, gpus)
        try:
            yield executor
        finally:
            executor.close()
