"""Procedural images for tests, by number, and folders of them."""

import numpy as np
import torch
from PIL import Image

from deepssim_scan.procedural import FAMILIES, nested_ellipses


def drawn(number, side, family=nested_ellipses):
    """Draw the image of a number: (side, side) grey levels."""
    pixels = family(torch.Generator().manual_seed(number), 1, side)[0]
    return np.round(pixels.numpy() * 255).astype(np.uint8)


def write(folder, count, *, per_folder, side=32):
    """Write 8-bit images of all procedural families, `per_folder` of them in each folder."""
    families = list(FAMILIES.values())
    for number in range(count):
        pixels = drawn(number, side, families[number % len(families)])
        path = folder / f"{number // per_folder:03d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder
