"""Two hundred labelled pairs, shown to a reader: does the definition agree with eyes?

The pairs, a third of each label, are shown blinded on the page of `deepssim-scan audit review`: the
sample brought to the training image by the transform of its label, the training image, and their
difference. What is decided is kept, so a reader can go on later. At the end it is compared with the
labels: a copy is a duplicate.

    python benchmarks/casestudy/reading.py --work casestudy/brain --reader 'A. Reader'
"""

import argparse
import csv
import io
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from label import orientations, transformed
from PIL import Image

from deepssim_scan.audit.history import History
from deepssim_scan.audit.review.agreement import agreements
from deepssim_scan.audit.review.server import Draw, Review, undecided
from deepssim_scan.evaluation.labelled import LABELS
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.pictures import Pictures

DEFINITION = "the definition"
_SHOWN = 256  # pixels a side

Row = dict[str, str]


def main() -> None:
    """Serve the pairs that the reader has not decided on, then tell how far the two agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of one modality")
    parser.add_argument("--reader", required=True)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    rows = {key(row): row for row in chosen(options.work / "labelled.csv", options.count)}
    matches = [
        Match(row["synthetic"], 1, row["training"], 0.0, row["label"], finding=name)
        for name, row in rows.items()
    ]
    with History(options.work / "reading", begin=True) as history:
        for name, row in rows.items():
            copy = "copy" if row["label"] == "duplicate" else "no copy"
            history.decide(name, DEFINITION, copy, blinded=True)
        shown = undecided(
            {"pairs": (matches, drawing(options.work, rows))}, history, options.reader
        )
        with Review(shown, history, options.reader, blinded=True) as served:
            print(
                f"{len(served.cases)} pairs to decide on. Open {served.address}; end with Ctrl-C."
            )
            with suppress(KeyboardInterrupt):
                served.serve_forever()
        for each in agreements(history.decisions()):
            one, other = each.readers
            print(f"{one} and {other} agree on {each.same} of {each.findings}, kappa {each.kappa}")


def chosen(path: Path, count: int) -> list[Row]:
    """Return a third of the pairs of each label, drawn at random, in a random order."""
    with path.open(newline="", encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    found = list[Row]()
    for label in LABELS:
        rows = [row for row in every if row["label"] == label]
        some = rng.permutation(len(rows))[: count // len(LABELS)]
        found += [rows[number] for number in some]
    return [found[number] for number in rng.permutation(len(found))]


def key(row: Row) -> str:
    """Return what names a pair."""
    return sha256(f"{row['training']}\0{row['synthetic']}".encode()).hexdigest()[:16]


def drawing(work: Path, rows: dict[str, Row]) -> Draw:
    """Return what draws pairs."""

    def draw(matches: list[Match]) -> list[Pictures | None]:
        return [_pictures(work, rows[str(match.finding)]) for match in matches]

    return draw


def _pictures(work: Path, row: Row) -> Pictures:
    training, sample = (
        torch.from_numpy(np.asarray(Image.open(path).convert("L"), np.float32) / 255)
        for path in (work / "training" / row["training"], work / "aligned" / row["synthetic"])
    )
    numbers = [float(row[name]) for name in ("degrees", "scale", "right", "down", "gamma")]
    at = torch.tensor([numbers])
    at[:, [1, 4]] = at[:, [1, 4]].log()
    moved = transformed(orientations(sample[None])[int(row["orientation"])], at)[0]
    return Pictures(*(_png(each) for each in (moved, training, (moved - training).abs())))


def _png(image: torch.Tensor) -> bytes:
    grey = Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    data = io.BytesIO()
    grey.resize((_SHOWN, _SHOWN), Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


if __name__ == "__main__":
    main()
