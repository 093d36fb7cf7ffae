"""Finds the images that the rows of a store were made from, and decodes them again.

store -> listing of its images; listing + rows -> pixels, where the images are still the same
"""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.read_options import ReadOptions
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Listing, list_images
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import Decoded, ImageRecord
from deepssim_scan.store.store import Store


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


@dataclass(frozen=True, slots=True)
class Reader:
    """Decodes images of a store again, of the files that a listing says are there now."""

    store: Store
    listing: Listing
    rule: Standardisation
    run: RunContext

    def decode(self, records: Iterable[ImageRecord]) -> Generator[Decoded, None, None]:
        """Decode the files of some records again, as the store's images were read, in their order.

        Of a file that holds several frames all are decoded, also those not asked for.
        """
        items = {(record.path, record.member) for record in records}
        chosen = tuple(item for item in self.listing.files if (item.path, item.member) in items)
        listing = replace(self.listing, files=chosen)
        with closing(decode_images(listing, self.rule, ingest_of(self.store), self.run)) as decoded:
            for item in decoded:
                yield from item

    def pixels(self, rows: Iterable[int]) -> Generator[tuple[int, Pixels], None, None]:
        """Give the image of each row, standardised: (row, (H, W) float32).

        Left out are rows whose file is gone, or not the one any more that was embedded, or cannot
        be decoded any more.
        """
        wanted = list(rows)
        records = dict(zip(wanted, self.store.records_at(wanted), strict=True))
        row_of = {record.key: row for row, record in records.items()}
        with closing(self.decode(records.values())) as images:
            for image in images:
                row = row_of.get(image.record.key)
                if row is None or image.pixels is None:
                    continue
                if image.record.sha256 == records[row].sha256:
                    yield row, image.pixels
