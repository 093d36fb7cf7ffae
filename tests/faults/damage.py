"""Bytes that are changed, one at a time, before a reader meets the files.

    folder -> flips -> a reader in a fork server meets each of them -> Tally

A reader must raise ScanError wherever a byte is not what was written, unless it holds nothing.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from client import Server
from trials import Tally, Violation, on_each, total

_BITS = [1 << bit for bit in range(8)]
_SEVERAL = [mask for mask in range(1, 256) if mask not in _BITS]
SMALL = 1000  # bytes of a file up to which each of them is changed


@dataclass(frozen=True, slots=True)
class Flip:
    """One byte of a file that is changed: the bits of `mask`, 1 to 255, are turned over.

    With a mask of 0 the file ends before that byte, or is gone when that is byte -1.
    """

    file: str
    offset: int
    mask: int


def every_byte(folder: Path, random: Random, times: int = 1) -> list[Flip]:
    """Return `times` different flips, 255 at most, of every byte under a folder.

    As long as they are few, half of them are of one bit.
    """
    return [
        Flip(path.relative_to(folder).as_posix(), offset, mask)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for offset in range(path.stat().st_size)
        for mask in random.sample([*_BITS, *random.sample(_SEVERAL, max(8, times - 8))], times)
    ]


def every_cut(folder: Path) -> list[Flip]:
    """Return every file under a folder gone, emptied, halved, and without its last byte."""
    return [
        Flip(path.relative_to(folder).as_posix(), length, 0)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for size in [path.stat().st_size]
        for length in sorted({-1, *range(0, size, max(1, size // 2)), size - 1})
    ]


def run_flips(server: Server, template: Path, reader: str, flips: Sequence[Flip]) -> Tally:
    """Let a reader, which must raise ScanError, meet one changed byte at a time.

    All are tried in one child, where they go in turn; when that dies, each in its own.
    """
    shutil.rmtree(server.root, ignore_errors=True)
    shutil.copytree(template, server.root)
    cases = [[flip.file, flip.offset, flip.mask] for flip in flips]
    arguments = {"reader": reader, "cases": cases}
    outcome = server.run("flips:survey", arguments, seconds=60 + len(cases))
    if outcome.ended == "returned":
        return _tally_flips(reader, flips, outcome.value)
    if len(flips) > 1:
        return total(run_flips(server, template, reader, [flip]) for flip in flips)
    return _tally_flips(reader, flips, [["crash", str(outcome)]])


def _tally_flips(reader: str, flips: Sequence[Flip], endings: Sequence[Sequence[str]]) -> Tally:
    tally = Tally(trials=len(flips))
    for flip, (ended, text) in zip(flips, endings, strict=True):
        tally.runs["byte changed" if flip.mask else "file cut or gone", ended] += 1
        if ended not in ("found", "harmless"):
            where = f"byte {flip.offset} of {flip.file} ^ {flip.mask}"
            tally.violations.append(Violation(reader, where, "", f"{ended}: {text}"))
    return tally


def sample_flips(flips: Sequence[Flip], count: int, random: Random) -> list[Flip]:
    """Return `count` flips, or more: all of files of up to 1,000 bytes, and of others a sample."""
    sizes = Counter(file for file, _ in {(flip.file, flip.offset) for flip in flips})
    small = [flip for flip in flips if sizes[flip.file] <= SMALL]
    large = [flip for flip in flips if sizes[flip.file] > SMALL]
    return small + random.sample(large, min(len(large), max(0, count - len(small))))


def survey(servers: Sequence[Server], template: Path, reader: str, flips: Sequence[Flip]) -> Tally:
    """Let a reader meet every flip, some hundreds at a time on whichever server is free."""
    parts = [flips[start : start + 250] for start in range(0, len(flips), 250)]
    return total(
        on_each(servers, lambda server, part: run_flips(server, template, reader, part), parts)
    )
