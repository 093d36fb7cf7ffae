"""The images of labelled pairs, read by a rule.

folder, names -> Images: standardised pixels, and whose image each is
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepssim_scan.errors import InputError
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.listing.items import Items
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.storage.files import shown


@dataclass(frozen=True, slots=True)
class Images:
    """Images by number: names, subjects, and pixels (H, W) float32."""

    names: tuple[str, ...]
    subjects: tuple[str, ...]
    pixels: tuple[Pixels, ...]


def read_images(
    listing: Listing,
    names: Sequence[str],
    rule: Standardisation,
    ingest: IngestConfig,
    run: RunContext,
) -> Images:
    """Read the images of a listing that have a name among `names`, with or without its suffix.

    Raises InputError where there are none.
    """
    wanted = set(names)
    paths = {_path(name) for name in wanted}
    files = Items(item for item in listing.files if _among(item.path, paths))
    found = list[tuple[str, str, Pixels]]()
    some = replace(listing, files=files)
    for done, images in enumerate(decode_images(some, rule, ingest, run), 1):
        for image in images:
            name = shown(image.record.name)
            if image.pixels is not None and _among(name, wanted):
                found.append((name, image.record.subject, image.pixels))
        run.progress("files read", done, len(files))
    if not found:
        raise InputError(
            f"{listing.folder}: holds none of the {len(wanted):,} images that the pairs name, or "
            "none could be read."
        )
    found.sort(key=lambda each: each[0])
    return Images(*(tuple(each) for each in zip(*found, strict=True)))


def _among(name: str, wanted: set[str]) -> bool:
    return name in wanted or name.rpartition(".")[0] in wanted


def _path(name: str) -> str:
    """Return the path in the name of an image (`ImageRecord.name`)."""
    return re.split("(?<!#)#(?!#)", name)[0].replace("##", "#")
