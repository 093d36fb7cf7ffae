"""Our own files, small ones: an index, a report and a history that the jobs made, to be damaged."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import TINY
from PIL import Image

from deepssim_scan.audit.config.template import TEMPLATE
from deepssim_scan.audit.findings import Finding
from deepssim_scan.audit.history import NAME, History, SetOfNight
from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import Damaged
from deepssim_scan.index.manifest import IndexManifest
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.check import check
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import VerdictConfig
from deepssim_scan.reporting.distributions import Distributions
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.storage.layout import CALIBRATION, ENCODER
from deepssim_scan.storage.records import read_json
from deepssim_scan.store.config import EmbedConfig

CONFIGURATION = TEMPLATE.encode()
WAIVERS = f"""[[waiver]]
finding = "0123456789abcdef"
who = "A. Nobody"
why = "a phantom, no patient"
until = {date(2030, 1, 31)}
""".encode()
_RUN = RunContext("cpu", workers=0)


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file in the folder of all, and what reads it: what it says, or an error of ours."""

    path: str
    read: Callable[[Path], Any]


def _checked(part: str) -> Callable[[Path], str]:
    """Read all of an index or a report, as `check` does."""

    def read(folder: Path) -> str:
        if not check(folder / part).intact:
            raise Damaged(f"{part}: is not what was written")
        return "intact"

    return read


def _calibration(folder: Path) -> dict[str, Any]:
    Calibration.read(folder / "index")
    return read_json(folder / "index" / CALIBRATION)


def _history(folder: Path) -> list[Any]:
    with History(folder / "audits") as history:
        nights = history.nights()
        return [nights, history.decisions(), *(history.sets(night) for night in nights)]


OWN = {
    "store.json": OwnFile("index/store/store.json", _checked("index/store")),
    "catalog": OwnFile("index/store/catalog.sqlite", _checked("index/store")),
    "rows": OwnFile("index/store/embeddings.zarr/c.0.0", _checked("index/store")),
    "index.json": OwnFile("index/index.json", lambda f: IndexManifest.read(f / "index")),
    "calibration": OwnFile("index/calibration.json", _calibration),
    "checkpoint": OwnFile(ENCODER, lambda f: checkpoint.opened(f / ENCODER)),
    "summary.json": OwnFile("report/summary.json", lambda f: read_json(f / "report/summary.json")),
    "distributions": OwnFile(
        "report/distributions.json", lambda f: Distributions.read(f / "report")
    ),
    "matches": OwnFile("report/matches.parquet", _checked("report")),
    "history": OwnFile(f"audits/{NAME}", _history),
    "matches-alone": OwnFile("report/matches.parquet", lambda f: read_counts(f / "report")[0]),
}


@cache
def folder() -> Path:
    """Make all of it, once in a process."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-own-"))
    for name, numbers in (("training", range(24)), ("synthetic", range(4))):
        (root / name).mkdir()
        for number in numbers:
            samples = np.random.default_rng(number).integers(0, 256, (40, 40), np.uint8)
            Image.fromarray(samples).save(root / name / f"{number:02d}.png")
    torch.manual_seed(0)
    checkpoint.save(root / ENCODER, Encoder(TINY), {})
    embed = EmbedConfig(shard_rows=16)
    index = IndexConfig(root / ENCODER, embed=embed, adapt="never")
    build_index(root / "training", root / "index", index, _RUN)
    asked = QueryConfig(embed=embed, verdict=VerdictConfig(3, "reference"))
    query(root / "synthetic", root / "index", root / "report", asked, _RUN)
    shutil.rmtree(root / "training")
    with History(root / "audits", begin=True) as history:
        finding = Finding("0123456789abcdef", "new", "", "0.png", "1.png", "", 0.9, 0.8, 0.001)
        night, _ = history.begin()
        history.put(night, SetOfNight("ldm", {"counts": {}}, {"duplicates": 1}, [1], [finding]))
        history.decide(finding.key, "a reader", "copy", blinded=True)
    return root


@cache
def made(name: str) -> tuple[Path, Any]:
    """Return the folder of all, and what is read of a file in it as long as it is whole."""
    return folder(), OWN[name].read(folder())


def bytes_of(name: str) -> bytes:
    """Return the bytes of a file as it was written."""
    return (folder() / OWN[name].path).read_bytes()
