"""Procedural images for tests: by number, by family, in folders, in memory; small networks."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from deepssim_scan.encoder.architecture import REFERENCE, Architecture
from deepssim_scan.imaging.registration import Registered
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.listing import Listing, list_images
from deepssim_scan.ingest.standardise import Standardisation
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import load_dataset
from deepssim_scan.training.procedural import FAMILIES, nested_ellipses

TINY = Architecture(
    depths=(1, 1),
    widths=(16, 16),
    pose=(16,),
    dimension=32,
    standardisation=Standardisation(size=32),
)
"""An architecture that runs in milliseconds."""

TINY_CONVNEXT = replace(REFERENCE, depths=(1, 1), widths=(8, 16), dimension=8)
"""The reference's, as small: batch norm, dropout, and no size of its own."""


def drawn(number, side, family=nested_ellipses):
    """Draw the image of a number: (side, side) grey levels."""
    pixels = family(torch.Generator().manual_seed(number), 1, side)[0]
    return np.round(pixels.numpy() * 255).astype(np.uint8)


def of_every_family(count, side):
    """Draw `count` images of each procedural family: (F count, side, side) standardised."""
    numbers = range(count)
    made = [drawn(number, side, family) for family in FAMILIES.values() for number in numbers]
    return restandardise(torch.tensor(np.stack(made)).float())


def registered(synthetic, training, inside=None):
    """Give pairs (P, 64, 64) as `register` does, of which nothing but the images is looked at."""
    nothing = torch.zeros(len(synthetic))
    if inside is None:
        inside = torch.ones(synthetic.shape, dtype=torch.bool)
    return Registered(*[nothing] * 5, synthetic, training, inside)


def write(folder, count, *, per_folder, side=32):
    """Write 8-bit images of four procedural families, `per_folder` of them in each folder."""
    families = [draw for name, draw in FAMILIES.items() if name != "shadows"]  # which are alike
    for number in range(count):
        pixels = drawn(number, side, families[number % len(families)])
        path = folder / f"{number // per_folder:03d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def in_memory(images, architecture, **training):
    """Read a folder or a listing into memory in this process, split as a TrainingConfig says."""
    listing = images if isinstance(images, Listing) else list_images(images)
    config, run = TrainingConfig(**training), RunContext(workers=0)
    return load_dataset(listing, architecture, config, IngestConfig(), run)
