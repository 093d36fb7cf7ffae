"""Procedural images for tests, by number."""

import numpy as np
import torch

from deepssim_scan.procedural import nested_ellipses


def drawn(number, side, family=nested_ellipses):
    """Draw the image of a number: (side, side) grey levels."""
    pixels = family(torch.Generator().manual_seed(number), 1, side)[0]
    return np.round(pixels.numpy() * 255).astype(np.uint8)
