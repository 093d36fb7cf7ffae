"""The CSV files of an index or report folder.

Paths are relative to the folder given, and written as `files.shown` shows them.
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.storage.files import replacing, shown
from deepssim_scan.storage.layout import BLANK, REJECTED
from deepssim_scan.store.store import Store


def write_rejected(folder: Path, rejections: Iterable[ImageRecord]) -> None:
    """Write rejected.csv: path, reason (a code of `rejection.REASONS`), detail."""
    rows = ((shown(record.name), record.reason, shown(record.detail)) for record in rejections)
    write_csv(folder / REJECTED, ["path", "reason", "detail"], rows)


def write_blank(folder: Path, blanks: Iterable[ImageRecord]) -> None:
    """Write blank.csv: the path of every frame with nothing on it, and the detail."""
    rows = ((shown(record.name), shown(record.detail)) for record in blanks)
    write_csv(folder / BLANK, ["path", "detail"], rows)


def write_left_out(folder: Path, store: Store) -> None:
    """Write rejected.csv and blank.csv of a store."""
    write_rejected(folder, store.rejections())
    write_blank(folder, store.blanks())


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, in place of what was there."""
    with replacing(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
