"""What a file or folder of ours is, in names and values that people and machines can read.

Loads neither torch nor NumPy, Zarr or FAISS: all that is said stands in JSON, SQLite and the
header of the checkpoint. `check` reads the rest.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import deserialize

from deepssim_scan.encoder import checkpoint_file
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.storage.files import check_sha256
from deepssim_scan.storage.layout import (
    ARRAY,
    CALIBRATION,
    INDEX_MANIFEST,
    STORE,
    STORE_MANIFEST,
    SUMMARY,
    THUMBNAILS,
)
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.manifest import open_catalog, read_manifest


def describe(path: Path) -> dict[str, Any]:
    """Describe a checkpoint, a store, an index or a report.

    Raises InputMissing when nothing is there, InputError when it is none of the four, Damaged,
    StoreMismatch or CheckpointError when what is read of it is not what was written.
    """
    describers = {"checkpoint": _checkpoint, "store": _store, "index": _index, "report": _report}
    return describers[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """Return "checkpoint", "store", "index" or "report".

    Raises InputMissing when nothing is there, InputError when it is none of the four.
    """
    if not path.exists():
        raise InputMissing(f"{path}: nothing is there.")
    if path.is_file():
        return "checkpoint"
    markers = {"index": INDEX_MANIFEST, "store": STORE_MANIFEST, "report": SUMMARY}
    for kind, marker in markers.items():
        if (path / marker).is_file():
            return kind
    raise InputError(f"{path}: is neither a store, an index, a report nor a checkpoint.")


def _checkpoint(path: Path) -> dict[str, Any]:
    header, _ = checkpoint_file.read(path, deserialize)
    training = {**header.training, "seen": len(header.training.get("seen", ()))}
    shown = {**asdict(header), "training": training}
    return {"kind": "checkpoint", **shown, "bytes": path.stat().st_size}


def _store(path: Path) -> dict[str, Any]:
    manifest, footer = read_manifest(path)
    open_catalog(path, footer).close()
    check_sha256(path / ARRAY / "zarr.json", footer.array)
    if manifest.thumbnail:
        check_sha256(path / THUMBNAILS / "zarr.json", footer.thumbnails)
    return {
        "kind": "store",
        "rows": footer.rows,
        "rejected": footer.rejected,
        "blank": footer.blank,
        "listed": footer.listed,
        "digest": footer.digest,
        **asdict(manifest),
    }


def _index(path: Path) -> dict[str, Any]:
    manifest = asdict(IndexManifest.read(path))
    return {
        "kind": "index",
        **manifest,
        "calibration": _calibration(path / CALIBRATION),
        "store": _store(path / STORE),
    }


def _calibration(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = read_json(path)
    shown = ("subjects", "gallery", "candidates", "tta_views", "source_first")
    return {
        **{name: value[name] for name in shown},
        "non_members": len(value["null"]["statistics"]),
        "planted": sum(map(len, value["planted"].values())),
        "training_duplicates": len(value["duplicates"]),
        "same_patient": len(value.get("same_patient", ())),
    }


def _report(path: Path) -> dict[str, Any]:
    return {"kind": "report", **read_json(path / SUMMARY)}
