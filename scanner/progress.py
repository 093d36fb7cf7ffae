"""What a long job tells its caller while it runs."""

from typing import Protocol


class Progress(Protocol):
    """Told how far a job is, and what a person should know before it ends."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take that `done` of `total` units of `stage` are done; `note` says more."""

    def warn(self, text: str) -> None:
        """Take a sentence that the person who runs the job should read."""


class Silent:
    """Report nothing."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Ignore how far the job is."""

    def warn(self, text: str) -> None:
        """Ignore the sentence."""


SILENT = Silent()


class Collected(Silent):
    """Collect the warnings, each once."""

    def __init__(self) -> None:
        """Begin with none."""
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep the sentence."""
        if text not in self.warnings:
            self.warnings.append(text)
