"""What identifies the stages of a job, so that a run can go on from what another left."""

import hashlib
import platform
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepssim_scan import __version__
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.errors import InputError, InputMissing, StoreMismatch
from deepssim_scan.execution.cluster import DECODERS
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Listing, list_images
from deepssim_scan.matching.evidence import RULE
from deepssim_scan.matching.identity import Context
from deepssim_scan.storage.layout import ENCODER, INDEX_MANIFEST
from deepssim_scan.storage.publish import Job, Stage
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

_COMPUTING = ("imaging", "ingest", "encoder", "index", "matching", "store")  # rooms
_OTHERS = ("torch", "numpy", "scipy", "zarr", "pyarrow", "faiss-cpu", "faiss-gpu")


@cache
def versions() -> dict[str, str]:
    """Return the versions of this program and of all that its results depend on."""
    found = {"deepssim-scan": __version__, "code": _code(), "python": platform.python_version()}
    for name in (*_OTHERS, *DECODERS):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _code() -> str:
    """Return a digest of the modules that embeddings and evidence depend on."""
    digest = hashlib.sha256()
    for room in _COMPUTING:
        folder = import_module(f"deepssim_scan.{room}").__path__[0]  # in a checkout, anywhere
        for path in sorted(Path(folder).rglob("*.py")):
            name = f"{room}/{path.relative_to(folder).as_posix()}"
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def embedded(listing: Listing, embedder: Embedder, store: str) -> Stage:
    """Identify the stage that embeds a listing into the folder `store` of a job's."""
    digest = hashlib.sha256()
    for item in listing.files:
        digest.update(repr(item).encode("utf-8", "surrogatepass"))
    source = embedder.source(listing.folder)
    files = {"listing": digest.hexdigest(), "manifest_sha256": source.pop("manifest_sha256")}
    options = {
        "encoder": embedder.loaded.fingerprint,
        "source": source,
        "shard_rows": embedder.config.shard_rows,
    }
    return Stage("embedded", options, {"files": files, "versions": versions()}, (store,))


def same_but_for_files(job: Job, record: dict[str, Any], stage: str | None = None) -> bool:
    """Tell whether job.json is of a job that differs, if at all, in which files there were.

    Where a stage is given, that stage alone is looked at.
    """
    mine = job.record()
    for each in (mine, record):
        each.get("stages", {}).get("embedded", {}).get("inputs", {}).pop("files", None)
    if stage is None:
        return mine == record
    return bool(mine["stages"][stage] == record.get("stages", {}).get(stage))


def context_of(embedder: Embedder, training: Store, synthetic: Store) -> Context:
    """Return what the evidence of synthetic images depends on, beside the images."""
    both = {
        "versions": versions(),
        "device": embedder.run.device_of_blocks,
        "synthetic": synthetic.manifest.source["read_options"],
    }
    pairs = {"training": training.manifest.source["read_options"], "rule": asdict(RULE)}
    return Context(both | {"encoder": embedder.loaded.fingerprint}, both | pairs)


def list_for_store(folder: Path, ingest: IngestConfig, run: RunContext) -> Listing:
    """List the images; subjects that could not be hashed are refused."""
    listing = list_images(folder, ingest.selection, run)
    if not ingest.read_options.subject_key and any(item.subject for item in listing.files):
        raise InputError(
            f"{ingest.selection.manifest}: names subjects, which are kept only as hashes under a "
            "secret. Give one with --subject-key FILE, or leave the column out."
        )
    return listing


def index_encoder(index: Path) -> Checkpoint:
    """Load the encoder that an index was built with.

    Raises InputMissing when there is no finished index, StoreMismatch for another encoder.
    """
    if not (index / INDEX_MANIFEST).is_file():
        raise InputMissing(
            f"{index}: holds no finished index (no {INDEX_MANIFEST}). "
            "Make one with `deepssim-scan build-index --training DIR`."
        )
    manifest = IndexManifest.read(index)
    loaded = checkpoint.opened(index / ENCODER)
    if loaded.fingerprint != manifest.encoder:
        raise StoreMismatch(
            f"{index / ENCODER}: is encoder {loaded.fingerprint[:12]}, and the index was built "
            f"with {manifest.encoder[:12]}. Build the index again."
        )
    return loaded


def require_encoder(path: Path, found: str, wanted: str) -> None:
    """Raise StoreMismatch when a file was replaced while the run began."""
    if found != wanted:
        raise StoreMismatch(
            f"{path}: is of encoder {found[:12]}, and this run began with {wanted[:12]}: it was "
            "replaced meanwhile. Run the same command again."
        )
