"""Which files of a folder are meant.

In a pattern `*`, `?` and `[...]` match within one part of the path, `**` any number of parts:
`*.png` is the top level only, `**/*.png` every level, `*/training.png` one folder down.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from deepssim_scan.errors import InputError


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder are meant: all images, those of patterns, or those of a manifest.

    `exclude`: patterns of files that are left out, whatever else says that they are meant. Patterns
    are matched with the path of a file relative to the folder, never with members of archives.

    Raises InputError for a pattern that can match no relative path, and when both include patterns
    and a manifest are given.
    """

    include: tuple[str, ...] = ()
    manifest: Path | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.include and self.manifest:
            raise InputError("include patterns and a manifest were given; give one of the two")
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                _check_pattern(option, pattern)

    def includes(self, path: str) -> bool:
        """Tell whether an include pattern matches a relative path."""
        return any(matches(path, pattern) for pattern in self.include)

    def excludes(self, path: str) -> bool:
        """Tell whether an exclude pattern matches a relative path."""
        return any(matches(path, pattern) for pattern in self.exclude)


def matches(path: str, pattern: str) -> bool:
    """Tell whether a pattern matches all of a relative path."""
    return _match(path.split("/"), pattern.split("/"))


def _match(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _match(parts[1:], pattern[1:])


def _check_pattern(option: str, pattern: str) -> None:
    parts = pattern.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise InputError(
            f"{option} pattern {pattern!r} must be relative to the folder, with no '.', '..' or "
            "empty part, as in '*/training.png'"
        )
