"""What lies in the folders that the jobs write: names, and patterns of all that is ours."""

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
PLOTS = "distribution.svg", "distribution.png"
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
    *(*JUDGED_FILES, SUMMARY, f"{EVIDENCE}/*.parquet"),
    *(f"{SYNTHETIC}/{name}" for name in _STORE_FILES),
)
"""Patterns of the files of our folders, beside job.json; `*` stays within one part of a path."""
