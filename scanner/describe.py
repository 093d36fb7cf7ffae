"""What a file or folder of ours is, in names and values that people and machines can read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepssim_scan import checkpoint
from deepssim_scan.embeddings import MANIFEST as STORE_MANIFEST
from deepssim_scan.embeddings import Store
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.index import IndexManifest
from deepssim_scan.index.flat import MANIFEST as INDEX_MANIFEST
from deepssim_scan.records import read_json
from deepssim_scan.report import SUMMARY
from deepssim_scan.scan import ENCODER, STORE


def describe(path: Path) -> dict[str, Any]:
    """Describe a checkpoint, a store, an index or a report.

    Raises InputMissing when nothing is there, InputError when it is none of the four, and what
    opening it raises when it is damaged.
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
    loaded = checkpoint.load(path)
    parameters = sum(weights.numel() for weights in loaded.encoder.parameters())
    return {
        "kind": "checkpoint",
        "fingerprint": loaded.fingerprint,
        "parameters": parameters,
        "architecture": asdict(loaded.architecture),
        "thresholds": asdict(loaded.thresholds),
        "training": dict(loaded.training),
        "version": loaded.version,
        "bytes": path.stat().st_size,
    }


def _store(path: Path) -> dict[str, Any]:
    with Store.open(path) as store:
        return {
            "kind": "store",
            "rows": store.rows,
            "rejected": store.rejected_count,
            "listed": store.listed,
            "digest": store.digest,
            **asdict(store.manifest),
        }


def _index(path: Path) -> dict[str, Any]:
    manifest = asdict(IndexManifest.read(path))
    thresholds = asdict(checkpoint.load(path / ENCODER).thresholds)
    return {"kind": "index", **manifest, "thresholds": thresholds, "store": _store(path / STORE)}


def _report(path: Path) -> dict[str, Any]:
    return {"kind": "report", **read_json(path / SUMMARY)}
