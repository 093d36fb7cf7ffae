"""Finds the images that the rows of a store were made from, and decodes them again.

store -> listing of its images; listing + rows -> pixels, where the images are still the same
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepssim_scan.execution.answer import Answer
from deepssim_scan.execution.executor import sliced
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Listing, list_images
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
    """Decodes images of a store again, of the files that a listing says are there now."""

    store: Store
    listing: Listing
    rule: Standardisation
    run: RunContext

    def wanted(self, rows: Sequence[int]) -> Wanted:
        """Return what reads the images of some rows, which are numbered from 0 in their order."""
        folder, ingest = self.listing.folder, ingest_of(self.store)
        records = self.store.records_at(rows)
        found = [self.listing.find(*name) for name in dict.fromkeys(r.key[:2] for r in records)]
        items = tuple(item for item in found if item is not None)
        frames: dict[tuple[str, str], frozenset[str]] = {}
        for path, member, frame in (record.key for record in records):
            frames[path, member] = frames.get((path, member), frozenset()) | {frame}
        return Wanted(
            Decoding(folder, items, self.rule, ingest, self.run.isolation, frames),
            {record.key: number for number, record in enumerate(records)},
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


def _read(wanted: Wanted) -> Answer:
    """Read images again: a block."""
    return Answer(None, {str(number): pixels for number, pixels in wanted.read()})
