"""Our Parquet files: written with a checksum a page, and checked when they are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deepssim_scan.errors import Damaged
from deepssim_scan.storage.files import replacing


@contextmanager
def writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Give a writer of row groups, whose file takes the place of `path` once it is whole."""
    with replacing(path) as file, pq.ParquetWriter(file, schema, write_page_checksum=True) as out:
        yield out


def row_groups(
    path: Path, schema: pa.Schema | None = None, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Give a file's row groups, or some of their columns.

    Raises Damaged when checksums of what is read do not fit, or the file has another schema.
    """
    try:
        # Opened here: Arrow takes no name that is not UTF-8.
        with (
            path.open("rb") as data,
            pq.ParquetFile(data, page_checksum_verification=True) as file,
        ):
            if schema is not None and file.schema_arrow != schema:
                raise pa.ArrowInvalid(f"its columns are {', '.join(file.schema_arrow.names)}")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns)
                table.validate(full=True)  # what no checksum covers: the headers of pages
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Damaged(
            f"{path}: cannot be read: {error}. Remove it and run the query again."
        ) from error
