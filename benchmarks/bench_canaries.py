"""Whether canaries notice a broken detector, and how often they cry out over a sound one.

An index of a set's images is made with the defaults, and broken in three ways: its encoder is one
of random weights, its FAISS index is of other rows, or its calibration is that of another set. What
`query` says of each is recorded: it refuses them, as their fingerprints do not fit. Then that is
bypassed, so that the canaries alone can notice. Each detector, and the sound one, plants
`--trials` times 200 canaries.

    python benchmarks/bench_canaries.py --images DIR --other DIR --name brain_tcga
"""

import argparse
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_verdicts import read_people, save_grey
from harness import console, parser, write

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.canaries import count_canaries
from deepssim_scan.calibration.found import Planted
from deepssim_scan.calibration.groups import groups_of
from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.checkpoint import Checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.encoder.views import TTA_VIEWS
from deepssim_scan.errors import ScanError
from deepssim_scan.index.rescore import Matches
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.gallery import Gallery, training_files
from deepssim_scan.jobs.identity import index_encoder
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CANDIDATES, CanaryConfig
from deepssim_scan.storage.layout import CALIBRATION, ENCODER, INDEX, STORE
from deepssim_scan.store.array import Vectors
from deepssim_scan.store.embed_listing import Embedder
from deepssim_scan.store.store import Store

POOL = 1500  # copies that canaries are drawn from


def main() -> None:
    """Break the detector, plant, count, print and write."""
    options = _options()
    run = RunContext("cpu", options.workers)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        index, other = (
            indexed(folder, work / folder.name, run) for folder in (options.images, options.other)
        )
        loaded, calibration = index_encoder(index), Calibration.read(index)
        store = stack.enter_context(Store.open(index / STORE))
        search = TrainingIndex.open(index, store)
        gallery = Gallery(store, search, groups_of(store), training_files(store, None, run))
        mixed = replace(gallery, search=_OtherRows(search, options.seed))
        foreign = replace(calibration, **_judging(Calibration.read(other)))
        detectors = {
            "sound": (gallery, loaded, calibration),
            "encoder of random weights": (gallery, _random(loaded, options.seed), calibration),
            "index of other rows": (mixed, loaded, calibration),
            "calibration of another set": (gallery, loaded, foreign),
        }
        found = {
            name: trials(*detector, run, options.trials) for name, detector in detectors.items()
        }
        checkpoint.save(work / ENCODER, _random(loaded, options.seed).encoder, {})
        for name, file in (
            ("encoder of random weights", work / ENCODER),
            ("index of other rows", other / INDEX),
            ("calibration of another set", other / CALIBRATION),
        ):
            found[name]["refused"] = refusal(index, file, work, run)
    for name, each in found.items():
        console.print(f"{name}: noticed {each['noticed']} of {options.trials}, {each['recall']}")
        console.print(each.get("refused", ""))
    write(f"canaries_{options.name}", options, {}, {}, detectors=found)


def indexed(images: Path, work: Path, run: RunContext) -> Path:
    """Index the images of all people of a folder, with the defaults."""
    for people in read_people(images).values():
        for name, grey in people:
            save_grey(grey, work / "training" / name)
    build_index(work / "training", work / "index", run=run)
    return work / "index"


def trials(
    gallery: Gallery, loaded: Checkpoint, calibration: Calibration, run: RunContext, count: int
) -> dict[str, Any]:
    """Plant canaries so many times; return in how many they say that the detector is broken.

    The canaries of each time are drawn from POOL copies, each looked for once.
    """
    embedder = Embedder(loaded, run=run, tta_views=len(TTA_VIEWS))
    calibrator = gallery.calibrator(embedder, CANDIDATES)
    rule = CalibratedRule(calibration, calibration.false_alarm(None))
    pool = calibrator.plant(POOL, np.random.default_rng(1))
    found = calibrator.look_for(pool.images, gallery.groups.number[pool.sources])
    noticed, recalls = 0, []
    for trial in range(count):
        size = min(CanaryConfig().count, len(pool.kinds))
        drawn = np.random.default_rng(trial).choice(len(pool.kinds), size, replace=False)
        planted = Planted([], pool.kinds[drawn], pool.sources[drawn])
        canaries = count_canaries(planted, found.only(drawn), rule, None)
        noticed += not canaries.passed
        recalls.append(canaries.count[0] / canaries.count[1])
    return {"noticed": noticed, "recall": [min(recalls), float(np.median(recalls)), max(recalls)]}


def refusal(index: Path, file: Path, work: Path, run: RunContext) -> str | None:
    """Put another file into a copy of an index; return the error of a query of that, if any."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        broken = Path(name) / "index"
        shutil.copytree(index, broken)
        shutil.copyfile(file, broken / file.name)
        try:
            query(index.parent / "training", broken, Path(name) / "report", run=run)
        except ScanError as error:
            return f"{type(error).__name__}: {str(error).replace(str(broken), 'index')}"
    return None


class _OtherRows(TrainingIndex):
    """An index whose rows are not those of its store."""

    def __init__(self, sound: TrainingIndex, seed: int) -> None:
        self._sound, self.rows = sound, sound.rows
        self._order = np.random.default_rng(seed).permutation(sound.rows)

    def search_views(self, queries: Vectors, k: int) -> Matches:
        """Find what the sound index finds, under other rows."""
        found = self._sound.search_views(queries, k)
        return replace(found, rows=self._order[found.rows])


def _random(loaded: Checkpoint, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    return replace(loaded, encoder=Encoder(loaded.architecture).eval())


def _judging(other: Calibration) -> dict[str, Any]:
    """Return what another calibration judges by."""
    return {"statistic": other.statistic, "null": other.null}


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"trials": 100, "workers": 2})
    made.add_argument("--images", type=Path, required=True, help="folder of real people's images")
    made.add_argument("--other", type=Path, required=True, help="the folder of another set")
    made.add_argument("--name", required=True, help="what the set is called in the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
