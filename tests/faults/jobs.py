"""The two jobs of the program as the harness runs them.

A job works in its working directory, where it makes `index` or `report`. Images and encoder lie
elsewhere: an image that cannot be read is rejected, as it should be, and the end is another one.
"""

import io
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import torch
from client import HERE
from PIL import Image
from trials import Command, Job

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.standardise import Standardisation
from deepssim_scan.jobs import build_index as index_job
from deepssim_scan.jobs import query as query_job
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.matching.config import VerdictConfig
from deepssim_scan.reporting.matches import best_matches
from deepssim_scan.storage.layout import MATCHES, STORE, SUMMARY
from deepssim_scan.storage.layout import REPORT as PAGE
from deepssim_scan.storage.layout import SYNTHETIC as SYNTHETIC_STORE
from deepssim_scan.store.config import EmbedConfig
from deepssim_scan.store.store import Store
from deepssim_scan.training.procedural import nested_ellipses

TINY = Architecture(
    depths=(1,), widths=(16,), pose=(16,), dimension=8, standardisation=Standardisation(size=16)
)
SMALL = EmbedConfig(shard_rows=8)
RUN = RunContext("cpu", workers=0)
_PLOTS = ("figure", "backends.backend_agg", "backends.backend_svg")  # else each query's to import
MODULES = ("faiss", "jobs", *(f"matplotlib.{name}" for name in _PLOTS))
"""What a fork server imports."""
INCOMPLETE = 4  # the exit code of a run that rejected something
INDEX, REPORT = Path("index"), Path("report")
TRAINING, SYNTHETIC, OLDER, ENCODER = "training", "synthetic", "older", "encoder.safetensors"
SIDE = 24
VOLUME = 9  # slices, more than a shard

pyarrow.array([""])  # imports pandas, where there is one: once, and not in every trial


def build_index(inputs: str, workers: int = 0) -> None:
    """Index the training images of `inputs`."""
    config = built_with(Path(inputs, ENCODER))
    index_job.build_index(Path(inputs, TRAINING), INDEX, config, replace(RUN, workers=workers))


def query(inputs: str, workers: int = 0) -> None:
    """Judge the synthetic images of `inputs` by the index that is there."""
    run = replace(RUN, workers=workers)
    query_job.query(Path(inputs, SYNTHETIC), INDEX, REPORT, top(3), run)


def built_with(encoder: Path) -> IndexConfig:
    """Index in small shards; not calibrated, which takes longer than all the rest."""
    return IndexConfig(encoder, embed=SMALL, calibrate=False)


def top(k: int) -> QueryConfig:
    """Ask for k matches an image, in small shards."""
    return QueryConfig(embed=SMALL, verdict=VerdictConfig(k, "reference", duplicate=0.999))


def write_inputs(folder: Path) -> Path:
    """Write training, older and synthetic images, good ones and bad ones, and an encoder."""
    for number in range(12):
        save(number, folder / TRAINING / f"p{number % 3}" / f"{number:02d}.png")
    volume = np.stack([_pixels(50 + number) for number in range(VOLUME)])
    np.save(folder / TRAINING / "p1" / "volume.npy", volume)
    with zipfile.ZipFile(folder / TRAINING / "p2.zip", "w") as archive:
        archive.writestr("whole.png", _png(70))
        archive.writestr("half.png", _png(71)[:200])
    _write_bad(folder / TRAINING)
    for number in range(10):
        save(30 + number, folder / OLDER / f"{number}.png")
    for number in range(10):
        save(number if number < 5 else 100 + number, folder / SYNTHETIC / f"{number:02d}.png")
    _write_bad(folder / SYNTHETIC)
    torch.manual_seed(0)
    checkpoint.save(folder / ENCODER, Encoder(TINY), {"trained_on": "nothing"})
    return folder


def _write_bad(folder: Path) -> None:
    """Write files that are rejected, first, in the middle and last of all, and one ignored."""
    (folder / "00-empty.png").touch()
    (folder / "10-half.png").write_bytes(_png(0)[:200])
    (folder / "p1-page.png").write_bytes(b"<html>")
    Image.new("L", (SIDE, SIDE), 7).save(folder / "zz-flat.png")
    (folder / "notes.txt").write_text("not an image")


def _pixels(number: int, side: int = SIDE) -> np.ndarray:
    pixels = nested_ellipses(torch.Generator().manual_seed(number), 1, side)[0]
    return np.round(pixels.numpy() * 255).astype(np.uint8)


def _png(number: int, side: int = SIDE) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_pixels(number, side)).save(file, "PNG")
    return file.getvalue()


def save(number: int, path: Path, side: int = SIDE) -> None:
    """Write image `number`, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(number, side))


def real_jobs(inputs: Path, templates: Path) -> list[Job]:
    """Return both jobs, each where there is nothing yet and where there is an older result.

    What they find in their folder before is made in `templates`.
    """
    built, config = templates / "query", built_with(inputs / ENCODER)
    index_job.build_index(inputs / TRAINING, built / INDEX, config, RUN)
    older, again = templates / "build again", templates / "query again"
    index_job.build_index(inputs / OLDER, older / INDEX, config, RUN)
    index_job.build_index(inputs / TRAINING, again / INDEX, config, RUN)
    query_job.query(inputs / OLDER, again / INDEX, again / REPORT, top(2), RUN)
    (templates / "build").mkdir()
    return [
        _job("build", "build_index", inputs, templates, INDEX),
        _job("build again", "build_index", inputs, templates, INDEX),
        _job("query", "query", inputs, templates, REPORT),
        _job("query again", "query", inputs, templates, REPORT),
    ]


VOLATILE = {
    SUMMARY: r'"(seconds|made|checksum|report\.html)": (\{[^}]*\}|"[^"]*"),?',
    PAGE: "Made [^<]*",
}
"""What differs from run to run: times, and digests of what holds them."""


def _job(name: str, function: str, inputs: Path, templates: Path, target: Path) -> Job:
    return Job(
        name,
        f"jobs:{function}",
        templates / name,
        str(target),
        rows,
        {"inputs": str(inputs)},
        VOLATILE,
    )


def commands(jobs: Sequence[Job], inputs: Path) -> list[Command]:
    """Return both jobs on the command line, and in scripts with small shards: with two workers."""
    build, build_again, ask, ask_again = jobs
    program = str(Path(sys.executable).with_name("deepssim-scan"))
    workers = ["--device", "cpu", "--workers", "2"]
    encoder, rule = ["--encoder", str(inputs / ENCODER)], ["--rule", "reference"]
    index = ["build-index", "--training", str(inputs / TRAINING), "--index", str(INDEX)]
    report = ["query", "--synthetic", str(inputs / SYNTHETIC), "--index", str(INDEX)]
    return [
        Command(build, [program, *index, "--no-calibrate", *encoder, *workers], INCOMPLETE),
        Command(ask, [program, *report, "--report", str(REPORT), *rule, *workers], INCOMPLETE),
        Command(build_again, _script("build_index", inputs)),
        Command(ask_again, _script("query", inputs)),
    ]


def _script(function: str, inputs: Path) -> list[str]:
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import jobs; "
    return [sys.executable, "-c", f"{code}jobs.{function}({str(inputs)!r}, workers=2)"]


def rows(made: Path) -> list[str]:
    """Return the names of a finished index's or report's images, and of a report's verdicts."""
    found: list[str] = []
    for name in (STORE, SYNTHETIC_STORE):
        if (made / name).is_dir():
            with Store.open(made / name) as store:
                found += (entry.name for entry in (*store.embedded(), *store.rejections()))
    if (made / MATCHES).is_file():
        found += (f"verdict on {match.synthetic}" for match in best_matches(made))
    return found
