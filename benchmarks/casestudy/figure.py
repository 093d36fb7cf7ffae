"""docs/case-study.png: samples of the case study beside the training images that they copy.

Pictures are of pseudo-people alone. A row a modality: sample above, training image below.

    python benchmarks/casestudy/figure.py --work casestudy
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import ROOT
from images import PSEUDO

SHOWN, SIDE, GAP = 8, 128, 4


def main() -> None:
    """Draw the samples of the level "high" with the highest SSIM of different subjects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("casestudy"))
    work = parser.parse_args().work
    rows = [row for name in PSEUDO for row in _rows(work / name)]
    picture = np.concatenate(rows)
    Image.fromarray(picture).save(ROOT / "docs" / "case-study.png", optimize=True)


def _rows(work: Path) -> list[np.ndarray]:
    with (work / "high" / "labelled.csv").open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["label"] == "duplicate"]
    found.sort(key=lambda row: -float(row["ssim"]))
    by_subject = {str(Path(row["training"]).parent): row for row in reversed(found)}
    chosen = sorted(by_subject.values(), key=lambda row: -float(row["ssim"]))[:SHOWN]
    gap = np.full((GAP, SHOWN * SIDE), 255, np.uint8)
    samples, training = (
        np.concatenate([_read(folder / row[side]) for row in chosen], 1)
        for folder, side in ((work / "aligned", "synthetic"), (work / "training", "training"))
    )
    return [samples, training, gap]


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    main()
