"""A folder read into memory, and split into images to train on and images to validate on."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.image_set import ImageSet, ImageSource
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.listing import Listing
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.record import Decoded
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.split import FEWEST, hold_out

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Dataset:
    """The images to train on, those to validate on, and how many could not be read.

    `seen` are the digests of the images to train on (`ImageRecord.digest`).
    """

    training: ImageSource
    validation: ImageSet
    rejected: int
    seen: frozenset[str]


def load_dataset(
    listing: Listing,
    architecture: Architecture,
    config: TrainingConfig,
    ingest: IngestConfig,
    run: RunContext,
) -> Dataset:
    """Read at most `config.max_images` files into memory, and hold a share of the images out.

    Whole subjects are held out where all are known, or from 20 on (`ingest.subjects` says who they
    are); else runs of neighbouring files (`split.hold_out`). Patient ids of DICOM files count
    whether there is a key for them or not: without one, they are hashed under a random key that is
    not kept. An image with the pixels of one that is held out is not trained on either.

    Raises InputError when fewer than 64 images are left, or their sizes differ where the
    architecture does not bring them to one size.
    """
    chosen = _sample(listing, config.max_images, config.seed)
    found = _read(chosen, architecture.standardisation, _keyed(ingest), run)
    _check_sizes(listing.folder, found.pixels, architecture)
    trained, held = hold_out(found.subjects, config.held_out, config.seed, known=found.known)
    trained &= ~_repeated(found.pixels, held)
    if (left := int(trained.sum())) < FEWEST:
        raise InputError(
            f"{listing.folder}: of {len(held)} images {int(held.sum())} are held out and {left} "
            f"are left to train on, and {FEWEST} are needed. Give more images, or of more subjects."
        )
    seen = frozenset(found.digests[index] for index in torch.nonzero(trained)[:, 0].tolist())
    return Dataset(found.part(trained), found.part(held), found.rejected, seen)


@dataclass(slots=True)
class _Read:
    """The images of a listing: pixels, paths, digests, and subjects by number, in its order."""

    pixels: list[Tensor] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    subjects: list[int] = field(default_factory=list)
    known: bool = True
    rejected: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, image: Decoded) -> None:
        """Take an image, or count that it could not be read; a blank one is neither."""
        self.rejected += image.record.state == "rejected"
        if image.pixels is not None:
            number = self._numbers.setdefault(image.record.subject, len(self._numbers))
            self.pixels.append(torch.from_numpy(image.pixels).half())
            self.paths.append("/".join(image.record.key).rstrip("/"))
            self.digests.append(image.record.digest)
            self.subjects.append(number)
            self.known &= image.record.subject_known

    def part(self, chosen: Tensor) -> ImageSet:
        """Return the images that are chosen (N,) bool."""
        indices = torch.nonzero(chosen)[:, 0].tolist()
        return ImageSet.of([self.pixels[i] for i in indices], [self.paths[i] for i in indices])


def _read(listing: Listing, rule: Standardisation, ingest: IngestConfig, run: RunContext) -> _Read:
    found = _Read()
    for done, images in enumerate(decode_images(listing, rule, ingest, run), 1):
        for image in images:
            found.add(image)
        run.progress("files read", done, len(listing.files))
    return found


def _keyed(ingest: IngestConfig) -> IngestConfig:
    """Have patient ids read, to tell subjects apart, also where they are not to be kept."""
    options = ingest.read_options
    key = options.subject_key or secrets.token_bytes(_KEY_BYTES)
    return replace(ingest, read_options=replace(options, subject_key=key))


def _sample(listing: Listing, most: int, seed: int) -> Listing:
    """Keep at most `most` files, drawn at random, in their order."""
    if len(listing.files) <= most:
        return listing
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.choice(len(listing.files), most, replace=False))
    return replace(listing, files=tuple(listing.files[index] for index in kept))


def _check_sizes(folder: Path, pixels: Sequence[Tensor], architecture: Architecture) -> None:
    """Raise InputError for too few images, or sizes that the architecture cannot take."""
    if len(pixels) < 2 * FEWEST:
        raise InputError(f"{folder}: {len(pixels)} readable images; training needs {2 * FEWEST}.")
    if len({image.shape for image in pixels}) > 1:
        raise InputError(
            f"{folder}: images of several sizes, which this architecture takes one at a time. "
            "Give images of one size, or another --architecture."
        )
    if (side := min(pixels[0].shape)) < architecture.least_side:
        raise InputError(
            f"{folder}: images of {side} pixels a side; this architecture needs "
            f"{architecture.least_side}. Give larger images, or another --architecture."
        )


def _repeated(pixels: Sequence[Tensor], held: Tensor) -> Tensor:
    """Tell which images have the pixels of one that is held out: (N,) bool."""
    indices = torch.nonzero(held)[:, 0].tolist()
    held_pixels = {pixels[index].numpy().tobytes() for index in indices}
    return torch.tensor([image.numpy().tobytes() in held_pixels for image in pixels])
