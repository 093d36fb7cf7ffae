"""How long it takes to calibrate an index, and to adapt an encoder, by the size of the set.

The set is `--images` procedural images of 128x128, ten of a subject. Its index is calibrated as it
is. Then rows of random directions are added to it, up to `--rows`, and it is calibrated again. They
stand for images that nothing is looked for in: both times the images that are drawn are those that
there are. Adapting takes at most 4,000 files, whatever the size of the set.

    python benchmarks/bench_calibrate.py --images 5000 --rows 500000
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import Spread, parser, show, write, write_images

from deepssim_scan.calibration.groups import Groups
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.index.build import build
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.ingest.record import ImageRecord
from deepssim_scan.jobs.adapt import adapt
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.storage.layout import ENCODER, STORE
from deepssim_scan.store.store import Store
from deepssim_scan.store.writer import StoreWriter

OF_SUBJECT = 10  # images
BLOCK = 10_000  # rows added at a time


def main() -> None:
    """Index, calibrate twice, adapt, print and write."""
    options = _options()
    run = RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for first in range(0, options.images, OF_SUBJECT):
            folder = work / "training" / f"{first // OF_SUBJECT:06d}"
            write_images(folder, OF_SUBJECT, 128, options.seed + first)
        config = IndexConfig(
            ingest=IngestConfig(subject_regex="([0-9]{6})/"), calibrate=False, adapt="never"
        )
        build_index(work / "training", work / "index", config, run)
        few = [calibrate(work / "index", run=run).seconds for _ in range(options.repeats)]
        enlarge(work / "index", work / "large", options.rows, options.images)
        many = [calibrate(work / "large", run=run).seconds for _ in range(options.repeats)]
        started = time.monotonic()
        listing = list_images(work / "training")
        adapt(listing, checkpoint.load(BUNDLED), config.ingest, run, work / "adapted.safetensors")
        adapting = time.monotonic() - started
    measured = {
        f"calibration, {options.images:,} rows": Spread.of(few, "s"),
        f"calibration, {options.rows:,} rows": Spread.of(many, "s"),
        "adapting": Spread.of([adapting], "s"),
    }
    ratios = {"calibration, many rows / few": np.median(many) / np.median(few)}
    show("calibration", measured, ratios)
    write("calibrate", options, measured, ratios)


def enlarge(index: Path, large: Path, rows: int, images: int) -> None:
    """Write the index with rows of random directions added; only the first `images` are drawn."""
    large.mkdir()
    (large / ENCODER).write_bytes((index / ENCODER).read_bytes())
    rng = np.random.default_rng(0)
    with (
        Store.open(index / STORE) as store,
        StoreWriter(large / STORE, replace(store.manifest, thumbnail=0)) as writer,
    ):
        writer.add(list(store.embedded()), store.read(0, store.rows))
        for first in range(store.rows, rows, BLOCK):
            count = min(BLOCK, rows - first)
            added = rng.standard_normal((count, store.dimension), np.float32)
            added /= np.linalg.norm(added, axis=1, keepdims=True)
            writer.add([_record(first + number) for number in range(count)], added)
        writer.finish(rows)
    with Store.open(large / STORE) as store:
        build(store, large, (ENCODER,))
    some = Groups.some

    def of_those_there(groups: Groups, most: int, rng: np.random.Generator, *_: object) -> object:
        return some(groups, most, rng, np.arange(images))

    Groups.some = of_those_there


def _record(row: int) -> ImageRecord:
    subject = f"none{row // OF_SUBJECT:06d}"
    record = ImageRecord(f"{subject}/{row}.png", "", "", 1, 1, 1, "", "L", subject)
    return replace(record, subject_known=True)


def _options() -> argparse.Namespace:
    sizes = {"images": 5_000, "rows": 500_000, "repeats": 1, "workers": 2}
    return parser(__doc__, sizes).parse_args()


if __name__ == "__main__":
    main()
