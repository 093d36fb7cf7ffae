"""Whether anything of a subject is left in a folder of ours.

folder, names of a subject -> a Problem for each file that tells of them

Files are read as what they are: names in a Parquet file are packed, and JSON, CSV and pages write
some characters in another way.
"""

import json
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa

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
from deepssim_scan.storage.parquet import row_groups
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
    wanted = {form for name in names for form in (name, shown(name))}
    either = "|".join(map(re.escape, sorted(wanted)))
    alone = re.compile(rf"(?<![0-9A-Za-z])(?:{either})(?![0-9A-Za-z])")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        if not set(path.relative_to(folder).parts) & set(_NUMBERS):
            with findings.collecting(path):
                count = sum(len(alone.findall(text)) for text in _texts(path))
                if count:
                    findings.add(path, f"names {shown(names[0])} {count} times")
    if (folder / ENCODER).is_file() and (folder / STORE).is_dir():
        with findings.collecting(folder / ENCODER), Store.open(folder / STORE) as store:
            there = {record.digest for record, _ in store.catalog.every()}
            gone = len(checkpoint.opened(folder / ENCODER).seen - there)
            if gone:
                findings.add(folder / ENCODER, f"was adapted to {gone} images that are gone")


def _texts(path: Path) -> Iterator[str]:
    """Give what is text in a file, as it was before it was written: of a kind not known, all."""
    if path.name == CATALOG:
        with Catalog(path) as catalog:
            for record, _ in catalog.every():
                yield from (record.path, record.member, record.subject, record.detail)
        return
    if path.suffix == ".parquet":
        yield from _of_tables(path)
        return
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    if path.suffix == ".json":
        try:
            yield from _of_value(json.loads(text))
            return
        except (ValueError, RecursionError):
            pass  # it is damaged, and looked through as it is
    yield unescape(text) if path.suffix in (".html", ".svg") else text.replace('""', '"')


def _of_tables(path: Path) -> Iterator[str]:
    """Give the texts of a Parquet file; Damaged where it cannot be read."""
    for table in row_groups(path):
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield "\n".join(text for text in column.to_pylist() if text)


def _of_value(value: Any) -> Iterator[str]:
    """Give the texts in what JSON holds, names of values included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _of_value(each)
    elif isinstance(value, list):
        for each in value:
            yield from _of_value(each)
