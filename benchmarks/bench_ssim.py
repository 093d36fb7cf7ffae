"""SSIM of image pairs: ours beside scikit-image's, in milliseconds a pair.

scikit-image takes one pair after the other, `ssim` a batch of the same pairs, `ssim_matrix`
every image with every other, which counts as images x images pairs. All get the same float32
images and the same number of threads; scikit-image uses one, so that is the default.

Before anything is timed, the values must be scikit-image's in float64, within 1e-5.

    python benchmarks/bench_ssim.py --images 64 --pairs 256 --side 128
"""

import argparse

import numpy as np
import torch
from harness import Spread, console, parser, procedural, seconds, show, standardised, write
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

from deepssim_scan.imaging.ssim import image_range, ssim, ssim_matrix
from deepssim_scan.ingest.config.standardisation import Standardisation

TOLERANCE = 1e-5
ONE_BY_ONE, PAIRS, MATRIX = "skimage, one by one", "ssim, pairs", "ssim_matrix"
STRIDED = "ssim_matrix, stride 2"


def main() -> None:
    """Check, measure, print and write."""
    options = _options()
    torch.set_num_threads(options.threads)
    drawn = procedural(options.images, options.side, options.seed)
    images = standardised(drawn, Standardisation(size=None))
    rows = np.random.default_rng(options.seed).integers(0, len(images), (2, options.pairs))
    first, second = images[rows[0]], images[rows[1]]
    errors = check(images, rows)
    taken = seconds(
        {
            ONE_BY_ONE: lambda: by_skimage(first.numpy(), second.numpy()),
            PAIRS: lambda: ssim(first, second, image_range(first)),
            MATRIX: lambda: ssim_matrix(images, images, image_range(images)),
            STRIDED: lambda: ssim_matrix(images, images, image_range(images), stride=2),
        },
        options.repeats,
    )
    counts = {ONE_BY_ONE: len(first), PAIRS: len(first)}
    measured = {
        name: Spread.of([1000 * each / counts.get(name, len(images) ** 2) for each in values], "ms")
        for name, values in taken.items()
    }
    base = measured[ONE_BY_ONE].median
    ratios = {
        f"{name}: times as fast as skimage": base / measured[name].median
        for name in (PAIRS, MATRIX, STRIDED)
    }
    show(f"Time a pair, {options.side}x{options.side}", measured, ratios)
    write("ssim", options, measured, ratios, max_abs_difference=errors)


def check(images: Tensor, rows: NDArray[np.int64]) -> dict[str, float]:
    """Return each way's largest distance from skimage; exit when an exact one's is too large."""
    first, second = images[rows[0]], images[rows[1]]
    expected = by_skimage(first.double().numpy(), second.double().numpy())
    ranges = image_range(images)
    found = {
        PAIRS: ssim(first, second, ranges[rows[0]]),
        MATRIX: ssim_matrix(images, images, ranges)[rows[0], rows[1]],
        STRIDED: ssim_matrix(images, images, ranges, stride=2)[rows[0], rows[1]],
    }
    errors = {name: float(np.abs(each.numpy() - expected).max()) for name, each in found.items()}
    for name, error in errors.items():
        console.print(f"{name}: at most {error:.2g} from skimage, over {len(expected)} pairs")
    wrong = [name for name in (PAIRS, MATRIX) if not errors[name] <= TOLERANCE]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: over {TOLERANCE:g} from skimage")
    return errors


def by_skimage(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return skimage's SSIM of each pair, its range that of the first image."""
    pairs = zip(first, second, strict=True)
    return np.array([structural_similarity(x, y, data_range=np.ptp(x)) for x, y in pairs])


def _options() -> argparse.Namespace:
    sizes = {"images": 64, "pairs": 256, "side": 128, "repeats": 7, "threads": 1}
    made = parser(__doc__, sizes)
    return made.parse_args()


if __name__ == "__main__":
    main()
