"""What lies in the folders that the jobs write: names, patterns of what is ours, and the rest."""

import os
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

JOB = "job.json"
REJECTED, BLANK = "rejected.csv", "blank.csv"

ENCODER, STORE = "encoder.safetensors", "store"
"""In an index folder: the encoder that made it, and the store of training embeddings."""

INDEX, APPROXIMATE = "flat.faiss", "approximate.faiss"
REDUCED, DIRECTIONS = "reduced.faiss", "directions.npy"
INDEX_MANIFEST, CALIBRATION = "index.json", "calibration.json"
"""In an index folder: the FAISS indexes, what they were built of, and the calibration."""

SEARCHED = (INDEX, REDUCED, DIRECTIONS, APPROXIMATE)
"""The files of an index folder that a search reads; all but the first may not be there."""

MATCHES, FLAGGED, SUMMARY = "matches.parquet", "flagged.csv", "summary.json"
SUBJECTS, VOLUMES, PARTIAL = "subjects.parquet", "volumes.parquet", "partial.parquet"
DISTRIBUTIONS = "distributions.json"
REPORT = "report.html"
PLOT = "distribution.svg"
PLOTS = PLOT, "distribution.png"
JUDGED_FILES = (
    *(MATCHES, FLAGGED, SUBJECTS, VOLUMES, PARTIAL, REJECTED, BLANK, DISTRIBUTIONS, *PLOTS, REPORT),
)
"""In a report folder: what is made of the evidence, beside summary.json."""

SYNTHETIC, EVIDENCE = "synthetic", "evidence"
SEEN, REGIONS = "seen.parquet", "regions.parquet"
"""In a report folder: the store of synthetic embeddings, and what registration found.

Beside the parts of the evidence lies what was seen of samples of both sides, and of regions."""

STORE_MANIFEST, CATALOG = "store.json", "catalog.sqlite"
ARRAY, THUMBNAILS = "embeddings.zarr", "thumbnails.zarr"
"""In a store."""

_DIGITS = "[0-9]" * 8
_PART, _PART_IMAGES = f"{_DIGITS}.parquet", f"{_DIGITS}.images.parquet"

_STORE_FILES = (
    STORE_MANIFEST,
    CATALOG,
    *(f"{array}/{name}" for array in (ARRAY, THUMBNAILS) for name in ("zarr.json", "c.*.0")),
)

INDEX_FILES = (
    *(REJECTED, BLANK, ENCODER, *SEARCHED, INDEX_MANIFEST, CALIBRATION),
    *(f"{STORE}/{name}" for name in _STORE_FILES),
)
REPORT_FILES = (
    *(*JUDGED_FILES, SUMMARY),
    *(f"{EVIDENCE}/{name}" for name in (_PART, _PART_IMAGES, SEEN, REGIONS)),
    *(f"{SYNTHETIC}/{name}" for name in _STORE_FILES),
)
"""Patterns of the files of our folders, beside job.json; `*` stays within one part of a path."""


def foreign(folder: Path, names: Collection[str]) -> Iterator[os.DirEntry[str]]:
    """Give every file or folder in one of ours that fits none of the patterns `names`.

    What lies in a folder that is given is not given. One of ours that cannot be listed is given,
    since anything may lie in it. Raises OSError where `folder` itself cannot be listed.
    """
    return _foreign(folder, (), [[JOB], *(name.split("/") for name in names)])


def _foreign(
    folder: str | Path, inside: Sequence[str], patterns: Sequence[Sequence[str]]
) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        parts = [*inside, entry.name]
        is_folder = entry.is_dir(follow_symlinks=False)
        if not any(_fits(parts, pattern, is_folder) for pattern in patterns):
            yield entry
        elif is_folder:
            try:
                yield from _foreign(entry.path, parts, patterns)
            except OSError:
                yield entry


def _fits(parts: Sequence[str], pattern: Sequence[str], is_folder: bool) -> bool:
    """Tell whether a file fits a pattern, or a folder the first parts of one."""
    long = len(parts) < len(pattern) if is_folder else len(parts) == len(pattern)
    return long and all(map(fnmatchcase, parts, pattern))
