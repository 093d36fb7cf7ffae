"""What is read of a folder, and which device, processes and limits a run uses."""

import hashlib
import hmac
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config.limits import WORKERS, Limits
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.progress import SILENT, Progress
from deepssim_scan.storage.files import sha256

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
        groups = re.compile(regex).groups
    except re.error as error:
        raise InputError(f"subject_regex ({regex!r}) {wanted}: {error}") from error
    if groups > 1:
        raise InputError(f"subject_regex ({regex!r}) {wanted}: found {groups} groups")


@dataclass(frozen=True, slots=True)
class RunContext:
    """The means of a run, none of which changes its result.

    `device` runs the networks: "cpu", "cuda", or "auto" for a GPU if there is one. `workers`
    processes decode; 0 decodes in this process, without limits.
    """

    device: str = "auto"
    workers: int = WORKERS
    limits: Limits = field(default_factory=Limits)
    progress: Progress = SILENT

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device must be one of {', '.join(DEVICES)}, found {self.device!r}")
        if self.workers < 0:
            raise InputError(f"workers must be >= 0, found {self.workers}")
