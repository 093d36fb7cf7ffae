"""A folder to the list of its images, and to a count of what is none.

What is listed, by default, of the files of the folder and of the members of its archives:

- Names with a suffix of SUFFIXES, in any case. Zip and tar archives are listed as their members;
  an archive in an archive is rejected.
- Names of image formats and archives that are not read (FOREIGN, PACKED), which end as
  rejections: they are not passed over in silence.
- Containers that may hold images and are not read (CONTAINERS, folders of Zarr or N5), by name or
  by first bytes. They are rejected, unless their first bytes are those of an image after all.
- Files of other names, often DICOM, whose first bytes are those of an image format, gzipped or
  not. A file that cannot be looked into is rejected, since it may be an image. Zip is told by
  its suffix alone: most office documents are zips.

With `include`, every file that a pattern matches, whatever its suffix, and no other; only
containers are looked into. Members of an archive are chosen as above.

With `manifest`, every file that a CSV file names, and no other. Members of an archive have the
archive's subject.

With `exclude`, in all three cases, files and folders of Zarr or N5 that a pattern matches are left
out, and counted.

The folder is walked so:

- An index or a report of this program is ignored, and counts once. What else lies in its folder
  is listed.
- Names that start with a dot, and DICOMDIR, are ignored, `include` or not; a hidden folder
  counts once. So are members of archives under such a name, or under __MACOSX.
- A link to a file inside the folder is a file. A link that leaves the folder is rejected.
- A link to a folder is never walked, so no loop can occur: inside the folder its files are
  listed under their own name, and the link is ignored; outside, or in a hidden folder, it is
  rejected.
- Folders that cannot be listed, and image names on FIFOs, devices and sockets, are rejected.

Archives are listed in a worker process, under the limits of the run: headers may ask for any
amount of memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.ingest.listing.formats import SUFFIXES, Kind
from deepssim_scan.ingest.listing.item import Item, Listing
from deepssim_scan.ingest.listing.items import in_order, merged
from deepssim_scan.ingest.listing.members import Members, listed, members_of
from deepssim_scan.ingest.listing.walk import Found, named, walk

__all__ = ["Item", "Listing", "list_images"]

_ALL = Selection()


def list_images(
    folder: Path, selection: Selection = _ALL, run: RunContext | None = None
) -> Listing:
    """List a folder's images; the module's text says which those are.

    Raises InputMissing when the folder or the manifest is absent, and InputError when the folder
    is not one, the manifest is not as `manifest_csv` says, or no image is listed: an empty input
    has no result.
    """
    _check_folder(folder)
    manifest = selection.manifest
    found = named(folder, manifest, selection) if manifest else walk(folder, selection)
    archives: list[Item] = []
    others = Counter[Kind]()
    files = in_order(_images(found, archives, others))
    if archives:
        work = partial(members_of, folder=folder, named=manifest is not None)
        members = _members(listed(archives, work, run or RunContext()), others)
        files = merged(files, in_order(members))
    listing = Listing(folder, files, others[Kind.IGNORED], others[Kind.EXCLUDED])
    _require_images(listing)
    return listing


def _images(found: Iterable[Found], archives: list[Item], others: Counter[Kind]) -> Iterator[Item]:
    """Give the images, keep the archives, and count the others."""
    for item, kind in found:
        if kind is Kind.ARCHIVE:
            archives.append(item)
        elif kind in (Kind.IGNORED, Kind.EXCLUDED):
            others[kind] += 1
        else:
            yield item


def _members(found: Iterable[Members], others: Counter[Kind]) -> Iterator[Item]:
    """Give the images of archives, and count the others."""
    for members, ignored in found:
        others[Kind.IGNORED] += ignored
        yield from sorted(members, key=lambda item: item.order)


def _check_folder(folder: Path) -> None:
    try:
        there, is_folder = folder.exists(), folder.is_dir()
    except OSError as error:  # of a mount that is gone, or a folder around it that is closed to us
        raise InputError(f"{folder}: cannot be listed: {error.strerror}.") from error
    if not there:
        raise InputMissing(f"{folder}: there is no such folder. Check the path.")
    if not is_folder:
        raise InputError(f"{folder}: is not a folder. Give the folder that holds the images.")


def _require_images(listing: Listing) -> None:
    if not listing.files:
        excluded = f", {listing.excluded} excluded" if listing.excluded else ""
        raise InputError(
            f"{listing.folder}: no image to read ({listing.ignored} other files{excluded}). Images "
            f"are named {', '.join('*' + suffix for suffix in SUFFIXES)}; --include PATTERN, "
            "relative to the folder, takes others, as in --include '**/*.dat'."
        )
