"""Rows of a store, back to the images that they were made from.

store -> listing of its images; listing + rows -> pixels, where the images are still the same
"""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from deepssim_scan.catalog import Entry
from deepssim_scan.decode import Pixels, Reading
from deepssim_scan.embeddings import Store
from deepssim_scan.images import Decoded, decode_images
from deepssim_scan.listing import Listing, Selection, list_images
from deepssim_scan.standardise import Standardisation
from deepssim_scan.workers import Limits


def listing_of(store: Store, images: Path | None = None) -> Listing:
    """List the images of a store where it says that they are, or in `images`."""
    source = store.manifest.source
    manifest = source["manifest"]
    selection = Selection(tuple(source["include"]), Path(manifest) if manifest else None)
    return list_images(images or Path(source["folder"]), selection)


def decode_entries(
    store: Store,
    entries: Iterable[Entry],
    listing: Listing,
    rule: Standardisation,
    *,
    workers: int,
    limits: Limits,
) -> Generator[Decoded, None, None]:
    """Decode the files of some entries again, as the store's images were read, in their order.

    Of a file that holds several frames all are decoded, also those not asked for.
    """
    items = {(entry.path, entry.member) for entry in entries}
    chosen = tuple(item for item in listing.files if (item.path, item.member) in items)
    decoded = decode_images(
        replace(listing, files=chosen),
        rule,
        Reading(**store.manifest.source["reading"]),
        workers=workers,
        limits=limits,
    )
    with closing(decoded):
        for item in decoded:
            yield from item


def pixels_of_rows(
    store: Store,
    rows: Iterable[int],
    listing: Listing,
    rule: Standardisation,
    *,
    workers: int,
    limits: Limits,
) -> Generator[tuple[int, Pixels], None, None]:
    """Give the image of each row, standardised by `rule`: (row, (H, W) float32).

    Left out are rows whose file is gone, or not the one any more that was embedded, or cannot be
    decoded any more.
    """
    wanted = list(rows)
    entries = dict(zip(wanted, store.entries_at(wanted), strict=True))
    places = {(entry.path, entry.member, entry.frame): row for row, entry in entries.items()}
    again = decode_entries(store, entries.values(), listing, rule, workers=workers, limits=limits)
    for image in again:
        row = places.get((image.path, image.member, image.frame))
        if row is None or image.pixels is None or image.sha256 != entries[row].sha256:
            continue
        yield row, image.pixels
