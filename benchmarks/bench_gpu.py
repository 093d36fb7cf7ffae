"""A GPU beside the CPU of the same machine: speed, and how far their results are apart.

Embedding and comparing pairs in one process, the search in FAISS's flat index where `faiss-gpu` is
installed, a step of training, and both commands by their functions, with several numbers of
workers that share the GPU. Half of the synthetic images are changed copies of training images.

    python benchmarks/bench_gpu.py
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_search import stored
from harness import Spread, parser, procedural, rates, seconds, show, standardised, write
from harness import write_images as write_procedural
from PIL import Image

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.imaging.changes.copies import plant
from deepssim_scan.imaging.image_set import ImageSet
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.imaging.registration.comparison import compare
from deepssim_scan.index.build import build
from deepssim_scan.index.config import SearchConfig
from deepssim_scan.index.flat import Flat
from deepssim_scan.index.search import TrainingIndex
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.calibrate import calibrate
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.objective import score_loss

DEVICES = ("cpu", "cuda")
SHARED = (1, 4, 12)  # workers on one GPU
BATCHES = (16, 64)  # of training


def main() -> None:
    """Measure, print and write."""
    options = _options()
    name = torch.cuda.get_device_name()
    measured, apart = in_one_process(options)
    measured |= steps(options)
    found, search_apart = searched(options)
    measured |= found
    found, verdicts = commands(options)
    measured |= found
    ratios = {
        f"{what}, cuda / cpu": measured[f"{what}, cuda"].median / measured[f"{what}, cpu"].median
        for what in ("embedding", "comparing", "search")
    }
    show(name, measured, ratios)
    print(apart | search_apart, verdicts)
    write("gpu", options, measured, ratios, gpu=name, apart=apart | search_apart, verdicts=verdicts)


def in_one_process(options: argparse.Namespace) -> tuple[dict[str, Spread], dict[str, float]]:
    """Embed images and compare pairs on both devices."""
    images = standardised(procedural(options.images, 128, options.seed))
    kinds = torch.arange(len(images)) % len(KINDS)
    planted = plant(images, kinds, torch.Generator().manual_seed(options.seed))
    copies = torch.stack(planted)
    loaded = checkpoint.load(BUNDLED).encoder
    encoders = {device: _copy(loaded, device) for device in DEVICES}
    measured, apart = {}, {}
    works: dict[str, Callable[[str], Any]] = {
        "embedding": lambda device: embed(encoders[device], images.to(device)).cpu(),
        "comparing": lambda device: compare(copies.to(device), images.to(device)).cpu(),
    }
    for what, work in works.items():
        sides = {f"{what}, {device}": partial(work, device) for device in DEVICES}
        measured |= rates(seconds(sides, options.repeats), len(images), "images")
    rows = [works["embedding"](device) for device in DEVICES]
    apart["least cosine of an embedding"] = float((rows[0] * rows[1]).sum(1).min())
    pairs = [works["comparing"](device).measures for device in DEVICES]
    off = (pairs[0] - pairs[1]).abs()
    apart["measures, greatest difference"] = float(off.max())
    apart["measures, share of pairs off by 0.001"] = float((off.amax(1) > 1e-3).float().mean())
    return measured, apart


def steps(options: argparse.Namespace) -> dict[str, Spread]:
    """Time steps of training on the GPU."""
    images = standardised(procedural(256, 128, options.seed)).half()
    every = ImageSet.of(list(images), [f"{number}.png" for number in range(len(images))])
    measured = {}
    for batch in BATCHES:
        encoder = _copy(checkpoint.load(BUNDLED).encoder, "cuda").train()
        optimizer = torch.optim.AdamW(encoder.parameters(), 1e-4)
        generator = torch.Generator("cuda").manual_seed(options.seed)
        config = TrainingConfig(batch=batch)

        def step(encoder=encoder, optimizer=optimizer, generator=generator, config=config) -> None:
            for _ in range(10):
                optimizer.zero_grad()
                score_loss(encoder, every, config, generator).backward()
                optimizer.step()
            torch.cuda.synchronize()

        taken = seconds({f"training, batch {batch}, cuda": step}, options.repeats)
        measured |= rates(taken, 10, "steps")
    return measured


def searched(options: argparse.Namespace) -> tuple[dict[str, Spread], dict[str, float]]:
    """Search the same index on both devices."""
    rng = np.random.default_rng(options.seed)
    training = rng.standard_normal((options.rows, 256), np.float32)
    training /= np.linalg.norm(training, axis=1, keepdims=True)
    queries = training[rng.integers(0, options.rows, options.searches)]
    queries += 0.03 * rng.standard_normal(queries.shape, np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as name, stored(Path(name), [training]) as store:
        build(store, Path(name) / "index", config=SearchConfig("flat"))
        index = TrainingIndex.open(Path(name) / "index", store)
    on = {"cpu": index, "cuda": TrainingIndex(Flat(index.flat._index, "cuda"))}

    def search(device: str) -> Any:
        return on[device].search(queries, 10)

    sides = {f"search, {device}": partial(search, device) for device in DEVICES}
    taken = seconds(sides, options.repeats)
    rows = [search(device).rows for device in DEVICES]
    same = {
        "FAISS on the GPU": float(on["cuda"].proposer.on_gpu),
        "same rows found": float((rows[0] == rows[1]).mean()),
    }
    return rates(taken, len(queries), "queries"), same


def commands(options: argparse.Namespace) -> tuple[dict[str, Spread], dict[str, Any]]:
    """Build an index and query it on each device, and compare the verdicts."""
    measured, found = {}, {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = write_procedural(work / "training", options.files, 128, options.seed)
        write_copies(files[: options.synthetic // 2], work / "synthetic", options.seed)
        rest = options.synthetic - options.synthetic // 2
        write_procedural(work / "synthetic" / "others", rest, 128, options.seed + 1)
        counts = {
            "build-index": options.files,
            "calibrate": options.files,
            "query": options.synthetic,
        }
        ways = {"cpu": RunContext("cpu")}
        ways |= {f"cuda, {workers} workers": RunContext("cuda", workers) for workers in SHARED}
        for way, run in ways.items():
            taken = built_and_queried(work, way, run)
            for (command, count), each in zip(counts.items(), taken, strict=True):
                measured[f"{command}, {way}"] = Spread.of([count / each], "images/s")
            found[way] = verdicts_of(work / f"report, {way}")
    return measured, differences(found)


def built_and_queried(work: Path, way: str, run: RunContext) -> list[float]:
    """Return the seconds of building, calibrating and querying."""
    index, report = work / f"index, {way}", work / f"report, {way}"
    times = [time.perf_counter()]
    build_index(work / "training", index, IndexConfig(calibrate=False), run)
    times.append(time.perf_counter())
    calibrate(index, run=run)
    times.append(time.perf_counter())
    query(work / "synthetic", index, report, run=run)
    times.append(time.perf_counter())
    return [after - before for before, after in pairwise(times)]


def verdicts_of(report: Path) -> dict[tuple[str, str], tuple[str, float]]:
    """Return the verdict and the score of each pair."""
    table = pq.read_table(report / "matches.parquet").to_pylist()
    return {(row["synthetic"], row["training"]): (row["verdict"], row["score"]) for row in table}


def differences(
    found: dict[str, dict[tuple[str, str], tuple[str, float]]],
) -> dict[str, dict[str, float]]:
    """Compare each way's pairs and verdicts with those of the CPU."""
    of_cpu, result = found["cpu"], {}
    for way, pairs in found.items():
        both = of_cpu.keys() & pairs.keys()
        result[way] = {
            "pairs": len(pairs),
            "pairs of the CPU too": len(both),
            "other verdicts": sum(of_cpu[pair][0] != pairs[pair][0] for pair in both),
            "greatest difference of the score": max(
                abs(of_cpu[pair][1] - pairs[pair][1]) for pair in both
            ),
        }
    return result


def write_copies(files: list[Path], folder: Path, seed: int) -> None:
    """Write a changed copy of each file."""
    folder.mkdir(parents=True)
    images = [torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255) for file in files]
    kinds = torch.arange(len(files)) % len(KINDS)
    changed = plant(torch.stack(images), kinds, torch.Generator().manual_seed(seed))
    for file, image in zip(files, changed, strict=True):
        grey = (image - image.min()) / (image.max() - image.min())
        Image.fromarray((grey * 255).byte().numpy()).save(folder / file.name)


def _copy(encoder: Encoder, device: str) -> Encoder:
    made = Encoder(encoder.architecture)
    made.load_state_dict(encoder.state_dict())
    return made.to(device)


def _options() -> argparse.Namespace:
    sizes = {
        "images": 1024,
        "rows": 500_000,
        "searches": 2_000,
        "files": 2_000,
        "synthetic": 1_000,
        "repeats": 3,
    }
    return parser(__doc__, sizes).parse_args()


if __name__ == "__main__":
    main()
