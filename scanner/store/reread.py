"""Finds the images that the rows of a store were made from, and decodes them again.

store -> listing of its images; listing + rows -> pixels, where the images are still the same
"""

from collections.abc import (
    Collection,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Item, Listing, list_images
from deepssim_scan.ingest.pipeline import CHUNK, Decoding, decoded
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.store.store import Store

Key = tuple[str, str, str]
"""Path, member and frame of an image."""


def listing_of(store: Store, run: RunContext, images: Path | None = None) -> Listing:
    """List the images of a store where it says that they are, or in `images`."""
    folder = images or Path(store.manifest.source["folder"])
    return list_images(folder, ingest_of(store).selection, run)


def ingest_of(store: Store) -> IngestConfig:
    """Return how the images of a store were read; the subject key is not recorded."""
    source = store.manifest.source
    manifest = source["manifest"]
    include, exclude = tuple(source["include"]), tuple(source["exclude"])
    selection = Selection(include, Path(manifest) if manifest else None, exclude)
    options = ReadOptions(**source["read_options"])
    return IngestConfig(selection, options, source["subject_regex"])


class Files(Protocol):
    """The files of a folder as they are now."""

    @property
    def folder(self) -> Path:
        """The folder."""

    def find(self, path: str, member: str) -> Item | None:
        """Return the item of a path and member, None where there is none."""


class Source(Protocol):
    """Images that are read where a block runs."""

    def read(self) -> Iterable[tuple[int, Pixels]]:
        """Give each image, standardised: its number and (H, W) float32; some may be missing."""


@dataclass(frozen=True, slots=True)
class Held:
    """Images that are at hand, standardised (H, W)."""

    images: Sequence[Pixels]

    def read(self) -> Iterable[tuple[int, Pixels]]:
        """Give each image and its number."""
        return enumerate(self.images)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Images to be read again: their files, and the number and SHA-256 of each that is wanted."""

    files: Decoding
    numbers: Mapping[Key, int]
    digests: Mapping[Key, str]

    def identities(self) -> dict[int, Hashable]:
        """Return of each image what makes its pixels what they are, by its number.

        Left out are those whose file is gone.
        """
        files, how = self.files, (self.files.rule, self.files.ingest.read_options)
        there = {(item.path, item.member): (item.size, item.mtime_ns) for item in files.items}
        return {
            number: (str(files.folder), key, there[key[:2]], self.digests[key], how)
            for key, number in self.numbers.items()
            if key[:2] in there
        }

    def only(self, numbers: Collection[int]) -> "Wanted":
        """Return the same for some of the images."""
        kept = {key: number for key, number in self.numbers.items() if number in numbers}
        frames = _frames(kept)
        items = tuple(item for item in self.files.items if (item.path, item.member) in frames)
        return Wanted(replace(self.files, items=items, frames=frames), kept, self.digests)

    def read(self) -> Iterator[tuple[int, Pixels]]:
        """Give each image, standardised: its number and (H, W) float32.

        Left out are those whose file is not the one any more that was embedded, or cannot be
        decoded any more.
        """
        for item in decoded(self.files):
            for image in item:
                number = self.numbers.get(image.record.key)
                if number is None or image.pixels is None:
                    continue
                if image.record.sha256 == self.digests[image.record.key]:
                    yield number, image.pixels


@dataclass(frozen=True, slots=True)
class Reader:
    """Decodes images of a store again, of the files that are there now."""

    store: Store
    files: Files
    rule: Standardisation
    run: RunContext

    def wanted(self, rows: Sequence[int]) -> Wanted:
        """Return what reads the images of some rows, which are numbered from 0 in their order."""
        folder, ingest = self.files.folder, ingest_of(self.store)
        records = self.store.records_at(rows)
        found = [self.files.find(*name) for name in dict.fromkeys(r.key[:2] for r in records)]
        items = tuple(item for item in found if item is not None)
        numbers = {record.key: number for number, record in enumerate(records)}
        return Wanted(
            Decoding(folder, items, self.rule, ingest, self.run.isolation, _frames(numbers)),
            numbers,
            {record.key: record.sha256 for record in records},
        )

    def pixels(self, rows: Iterable[int]) -> Generator[tuple[int, Pixels], None, None]:
        """Give the image of each row, standardised: (row, (H, W) float32), by row.

        Left out are those that `Wanted.read` leaves out, and those whose file is gone.
        """
        wanted = sorted(rows)
        blocks = [wanted[part] for part in sliced(len(wanted), CHUNK)]
        with closing(self.run.map(_read, map(self.wanted, blocks))) as answers:
            for block, answer in zip(blocks, answers, strict=True):
                for number in sorted(map(int, answer.arrays)):
                    yield block[number], answer.arrays[str(number)]


def _frames(keys: Iterable[Key]) -> dict[tuple[str, str], frozenset[str]]:
    """Return the frames of images by path and member."""
    frames: dict[tuple[str, str], frozenset[str]] = {}
    for path, member, frame in keys:
        frames[path, member] = frames.get((path, member), frozenset()) | {frame}
    return frames


def _read(wanted: Wanted) -> Answer:
    """Read images again: a block."""
    return Answer(None, {str(number): pixels for number, pixels in wanted.read()})
