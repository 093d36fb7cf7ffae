"""Whether anything of a subject is left in a folder of ours.

folder, names of a subject -> a Problem for each file that tells of them
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepssim_scan.encoder import checkpoint
from deepssim_scan.jobs.check.findings import Findings
from deepssim_scan.storage.files import shown
from deepssim_scan.storage.layout import (
    ARRAY,
    CATALOG,
    ENCODER,
    SEARCHED,
    STORE,
    THUMBNAILS,
)
from deepssim_scan.store.catalog import Catalog
from deepssim_scan.store.store import Store

_NUMBERS = (
    ENCODER,
    *SEARCHED,
    ARRAY,
    THUMBNAILS,
)  # files and folders that hold numbers, and no name


def look_for_subject(folder: Path, names: Sequence[str], findings: Findings) -> None:
    """Take down every file that names a subject, and an encoder that may know one.

    `names` are the subject's name, and its hash where there is a key. A name counts where it
    stands alone: with no letter or digit beside it. Rows of embeddings are those of the catalog,
    which names everyone. An encoder that was adapted to images which are not in the catalog any
    more may know whom they show.
    """
    wanted = b"|".join(re.escape(name.encode("utf-8", "surrogateescape")) for name in names)
    alone = re.compile(rb"(?<![0-9A-Za-z])(?:" + wanted + rb")(?![0-9A-Za-z])")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if not set(path.relative_to(folder).parts) & set(_NUMBERS):
            count = sum(len(alone.findall(text)) for text in _texts(path))
            if count:
                findings.add(path, f"names {shown(names[0])} {count} times")
    if (folder / ENCODER).is_file() and (folder / STORE).is_dir():
        with findings.collecting(folder / ENCODER), Store.open(folder / STORE) as store:
            there = {record.digest for record, _ in store.catalog.every()}
            gone = len(checkpoint.opened(folder / ENCODER).seen - there)
            if gone:
                findings.add(folder / ENCODER, f"was adapted to {gone} images that are gone")


def _texts(path: Path) -> Iterator[bytes]:
    """Give what is text in a file: of a catalog, what its rows say; else all of it."""
    if path.name != CATALOG:
        yield path.read_bytes()
        return
    with Catalog(path) as catalog:
        for record, _ in catalog.every():
            for text in (record.path, record.member, record.subject, record.detail):
                yield text.encode("utf-8", "surrogateescape")
