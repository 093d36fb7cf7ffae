"""The sketch of `benchmarks/sketch.py` against SSIM."""

import sys
from pathlib import Path

import pytest
import torch

from deepssim_scan.imaging.ssim import image_range, ssim
from deepssim_scan.imaging.warp import blur, restandardise
from deepssim_scan.training.procedural import FAMILIES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from sketch import Sketch

SIDE, COUNT = 64, 40


@pytest.mark.parametrize("family", ["dead-leaves", "pink-noise"])
def test_the_inner_product_of_sketches_is_ssim(family: str) -> None:
    rng = torch.Generator().manual_seed(1)
    images = restandardise(FAMILIES[family](rng, 2 * COUNT, SIDE))
    share = torch.linspace(0, 1, COUNT)[:, None, None]  # of the other image: SSIM of all sizes
    first = images[:COUNT]
    second = restandardise((1 - share) * first + share * images[COUNT:])
    second = torch.where(share > 0.5, second, blur(second, torch.tensor([0.7])))
    expected = ssim(first, second, image_range(first))
    assert expected.min() < 0.3 and expected.max() > 0.9

    def error(dimension: int) -> float:
        sketch = Sketch(SIDE, dimension)
        return float(((sketch(first) * sketch(second)).sum(1) - expected).abs().mean())

    assert error(4096) < 0.03
    assert error(4096) < error(64)
