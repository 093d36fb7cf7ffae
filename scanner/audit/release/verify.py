"""Verifies a report or a release: its bytes, its signature, and a sample of it computed again.

report or release folder -> Checked, as `check` gives it
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepssim_scan.audit.release.release import STATEMENT
from deepssim_scan.audit.release.statement import listed_in, opened, read_public_key
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing.lookup import Lookup
from deepssim_scan.jobs.check import Checked, check
from deepssim_scan.jobs.findings import Findings
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.storage.files import sha256
from deepssim_scan.storage.layout import SYNTHETIC
from deepssim_scan.storage.publish import read_job
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.reread import Reader
from deepssim_scan.store.store import Store


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """How much is verified: `sample` images of a report are embedded again, drawn by `seed`.

    `key` is a file with the public Ed25519 key that a release must be signed with.
    """

    sample: int = 100
    seed: int = 0
    key: Path | None = None


def verify(path: Path, config: VerifyConfig, run: RunContext) -> Checked:
    """Verify a report or a release.

    Raises InputMissing or InputError when it is neither, or the key cannot be read.
    """
    if (path / STATEMENT).is_file():
        return _verify_release(path, config)
    checked = check(path, run.progress)
    if checked.kind != "report" or not checked.intact:
        return checked
    findings = Findings(dict(checked.counts))
    with findings.collecting(path):
        _embed_again(path, config, run, findings)
    return replace(checked, counts=findings.counts, problems=tuple(findings.problems))


def _verify_release(folder: Path, config: VerifyConfig) -> Checked:
    """Compare every file with the statement, and look for others."""
    key = None if config.key is None else read_public_key(config.key)
    findings, path = Findings(), folder / STATEMENT
    listed: dict[str, str] = {}
    with findings.collecting(path):
        statement, signed = opened(path, path.read_bytes(), key)
        listed = listed_in(path, statement)
        findings.counts["signatures verified"] = int(signed)
    there: dict[str, Path] = {}
    with findings.collecting(folder):
        there = {path.relative_to(folder).as_posix(): path for path in _entries(folder)}
    for name, digest in listed.items():
        with findings.collecting(folder / name):
            if name not in there or there[name].is_symlink() or not there[name].is_file():
                findings.add(folder / name, "is gone, or is no file")
            elif sha256(there[name]) != digest:
                findings.add(folder / name, "is not the file that was released")
    for name in sorted(there.keys() - listed.keys() - {STATEMENT}):
        findings.add(folder / name, "is not in the release: it was added")
    findings.counts["files"] = len(listed)
    return Checked(folder, "release", findings.counts, tuple(findings.problems))


def _entries(folder: Path) -> Iterator[Path]:
    """Give all that lies in a folder and is no folder; a link to a folder is none.

    Raises OSError for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for inside, folders, names in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(inside) / name).is_symlink()]
        yield from (Path(inside) / name for name in [*names, *links])


def _embed_again(report: Path, config: VerifyConfig, run: RunContext, findings: Findings) -> None:
    """Read a sample of the images again, and compare their embeddings with those of the report."""
    job = read_job(report) or {}
    loaded = index_encoder(Path(job["index"]))
    with run.opened() as run, Store.open(report / SYNTHETIC) as store:
        rng = np.random.default_rng(config.seed)
        count = min(config.sample, store.rows)
        rows = np.sort(rng.choice(store.rows, count, replace=False)).tolist()
        files = Lookup(Path(store.manifest.source["folder"]), run)
        rule = loaded.architecture.standardisation
        pixels = dict(Reader(store, files, rule, run).pixels(rows))
        names = dict(zip(rows, store.paths(np.array(rows)), strict=True))
        there = sorted(pixels)
        again = Embedder(loaded, run=run).embed_pixels([pixels[row] for row in there])
        for row in set(rows) - pixels.keys():
            findings.add(
                files.folder / names[row], "is gone, or is not what was judged", (row, row)
            )
        for row, embedding in zip(there, again, strict=True):
            if not np.array_equal(embedding, store.read(row, row + 1)[0]):
                findings.add(files.folder / names[row], "is embedded differently now", (row, row))
        findings.counts["images embedded again"] = len(there)
