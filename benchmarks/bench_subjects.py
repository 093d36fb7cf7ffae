"""Whether those who are reproduced are named, all of them and nobody else.

All people of a folder are the training set, a file or a folder each. Of 50 of them, drawn at
random, four copies each are planted, changed in ways of `held_out.COPIES` and `FURTHER` drawn at
random, among the images of another folder, whose people are in no training set. `build-index` and
`query` run with their defaults.

    python benchmarks/bench_subjects.py --images DIR --others DIR --name cxr_kermany
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from bench_verdicts import KINDS, read_people, save_grey
from harness import console, parser, write
from held_out import changed

from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.storage.layout import SUBJECTS


def main() -> None:
    """Plant, query, compare, print and write."""
    options = _options()
    rng, run = np.random.default_rng(options.seed), RunContext("cpu", options.workers)
    people = list(read_people(options.images).values())
    planted = set(rng.choice(len(people), options.subjects, replace=False).tolist())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for number, images in enumerate(people):
            for image, (_, grey) in enumerate(images):
                save_grey(grey, work / "training" / f"{number:05d}" / f"{image}.png")
            for copy in range(options.copies if number in planted else 0):
                grey = images[rng.integers(len(images))][1]
                made = changed(grey, str(rng.choice(KINDS)), rng)
                save_grey(made, work / "synthetic" / f"copy-{number:05d}-{copy}.png")
        for who, images in read_people(options.others).items():
            for image, (_, grey) in enumerate(images):
                other = f"other-{who.replace('/', '-')}-{image}.png"
                save_grey(grey, work / "synthetic" / other)
        config = IndexConfig(ingest=IngestConfig(subject_regex="([0-9]{5})/"))
        build_index(work / "training", work / "index", config, run)
        counts = query(work / "synthetic", work / "index", work / "report", run=run).summary
        rows = pq.read_table(work / "report" / SUBJECTS).to_pylist()
    named = {int(row["subject"]) for row in rows}
    found = {
        "subjects": len(people),
        "planted": len(planted),
        "named": len(named & planted),
        "others_named": len(named - planted),
        "images": counts["counts"],
    }
    console.print(found)
    write(f"subjects_{options.name}", options, {}, {}, found=found)


def _options() -> argparse.Namespace:
    made = parser(__doc__, {"subjects": 50, "copies": 4, "workers": 2})
    made.add_argument("--images", type=Path, required=True, help="folder of real people's images")
    made.add_argument("--others", type=Path, required=True, help="folder of other people's images")
    made.add_argument("--name", required=True, help="what the set is called in the result")
    return made.parse_args()


if __name__ == "__main__":
    main()
