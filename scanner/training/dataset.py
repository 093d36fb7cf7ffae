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
from deepssim_scan.ingest.listing.items import Items
from deepssim_scan.ingest.pipeline import decode_images
from deepssim_scan.ingest.pixels import Pixels
from deepssim_scan.ingest.record import Decoded, ImageRecord
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
    """Read at most `config.max_images` images into memory, and hold a share of them out.

    Of more images, as of volumes, some are drawn at random. Whole subjects are held out where most
    are known, or from 20 on (`ingest.subjects` says who they are); else runs of neighbouring files
    (`split.hold_out`). Patient ids of DICOM files count whether there is a key for them or not:
    without one, they are hashed under a random key that is not kept. An image with the pixels of
    one that is held out is not trained on either.

    Raises InputError when fewer than 64 images are left, or their sizes differ where the
    architecture does not bring them to one size.
    """
    chosen = _sample(listing, config.max_images, config.seed)
    drawn = _Drawn(config.max_images, config.seed)
    _read(chosen, architecture.standardisation, _keyed(ingest), run, drawn)
    images = sorted(drawn.images, key=lambda image: image.number)
    pixels = [image.pixels for image in images]
    _check_sizes(listing.folder, pixels, architecture)
    known = 2 * sum(image.known for image in images) > len(images)
    trained, held = hold_out(_numbered(images), config.held_out, config.seed, known=known)
    trained &= ~_repeated(pixels, held)
    if (left := int(trained.sum())) < FEWEST:
        raise InputError(
            f"{listing.folder}: of {len(held)} images {int(held.sum())} are held out and {left} "
            f"are left to train on, and {FEWEST} are needed. Give more images, or of more subjects."
        )
    training, validation = (_part(images, chosen) for chosen in (trained, held))
    seen = frozenset(image.digest for image in training)
    return Dataset(_set_of(training), _set_of(validation), drawn.rejected, seen)


@dataclass(frozen=True, slots=True)
class _Image:
    """An image in memory, and its number in the order of its listing."""

    number: int
    pixels: Tensor
    path: str
    digest: str
    subject: str
    known: bool


@dataclass(slots=True)
class _Drawn:
    """At most `most` of the images that are added, drawn at random, in no order."""

    most: int
    seed: int
    images: list[_Image] = field(default_factory=list)
    rejected: int = 0
    _added: int = 0
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, image: Decoded) -> None:
        """Take an image, or count that it could not be read; a blank one is neither.

        Every image has the same chance to be kept (Vitter 1985, algorithm R).
        """
        self.rejected += image.record.state == "rejected"
        if image.pixels is None:
            return
        self._added += 1
        if self._added <= self.most:
            self.images.append(_image(self._added, image.record, image.pixels))
        elif (place := int(self._rng.integers(self._added))) < self.most:
            self.images[place] = _image(self._added, image.record, image.pixels)


def _image(number: int, record: ImageRecord, pixels: Pixels) -> _Image:
    path, kept = "/".join(record.key).rstrip("/"), torch.from_numpy(pixels).half()
    return _Image(number, kept, path, record.digest, record.subject, record.subject_known)


def _numbered(images: Sequence[_Image]) -> list[int]:
    """Number the subjects of images in the order in which they first appear."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(image.subject, len(numbers)) for image in images]


def _part(images: Sequence[_Image], chosen: Tensor) -> list[_Image]:
    """Return the images that are chosen (N,) bool."""
    return [images[index] for index in torch.nonzero(chosen)[:, 0].tolist()]


def _set_of(images: Sequence[_Image]) -> ImageSet:
    return ImageSet.of([image.pixels for image in images], [image.path for image in images])


def _read(
    listing: Listing, rule: Standardisation, ingest: IngestConfig, run: RunContext, drawn: _Drawn
) -> None:
    for done, images in enumerate(decode_images(listing, rule, ingest, run), 1):
        for image in images:
            drawn.add(image)
        run.progress("files read", done, len(listing.files))


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
    return replace(listing, files=Items(listing.files[index] for index in kept.tolist()))


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
