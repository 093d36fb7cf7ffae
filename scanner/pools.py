"""The images of a folder in memory, to train on and to validate on, and pairs made of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Generator, Tensor

from deepssim_scan.augment import other_subject, perturb
from deepssim_scan.decode import Reading
from deepssim_scan.encoder import Architecture
from deepssim_scan.errors import InputError
from deepssim_scan.images import decode_images
from deepssim_scan.listing import Listing
from deepssim_scan.ssim import image_range, ssim_matrix
from deepssim_scan.workers import Limits

_FEWEST = 32  # images to train on, and to validate on
_MANY_FOLDERS = 20  # from here on, folders are taken for subjects and held out whole
_RUNS = 7  # of neighbouring files held out, at most, where folders do not tell subjects apart
_RUN = 16  # files of a run, at least
_APART = 8  # files on either side of a run that are left out: often of the same subject
_NAME_DISTANCE = 8  # places by name within which a neighbour is drawn
_SSIM_STRIDE = 3  # windows skipped in a target: within 0.03 of the exact one, a ninth of the cost
_SSIM_BINS = 10  # ranges of SSIM that count alike, however few pairs fall into one


@dataclass(frozen=True, slots=True)
class Pool:
    """Images to draw from: pixels (N, H, W) float16 in the folder's order, standardised.

    `by_name` (N,) lists their places sorted by file name first: there, files of one name in
    several folders are neighbours.
    """

    pixels: Tensor
    by_name: Tensor

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw `count` images, half of them neighbours of the others: (count, H, W) float32."""
        quarter, last = count // 4, len(self.pixels) - 1
        first, third = distinct(last, quarter, generator), distinct(last, quarter, generator)
        apart = torch.randint(
            1, _NAME_DISTANCE + 1, (quarter,), generator=generator, device=generator.device
        ).cpu()
        named = self.by_name[torch.cat([third, (third + apart).clamp_max(last)])]
        chosen = torch.cat([first, first + 1, named])
        return self.at(chosen, generator.device)

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw at most `count` different images: (n, H, W) float32."""
        return self.at(distinct(len(self.pixels), count, generator), generator.device)

    def at(self, places: Tensor, device: torch.device) -> Tensor:
        """Return the images at some places: (n, H, W) float32."""
        return self.pixels[places].to(device).float()


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a folder: to train on, to validate on, and how many could not be read."""

    training: Pool
    validation: Pool
    rejected: int


def load_images(
    listing: Listing,
    architecture: Architecture,
    reading: Reading = Reading(),
    *,
    held_out: float = 0.05,
    max_images: int = 50_000,
    seed: int = 0,
    workers: int,
    limits: Limits = Limits(),
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Images:
    """Read a folder into memory, at most `max_images` files of it, and hold a share of it out.

    From 20 folders on, folders are held out whole, since a folder is usually a subject; a volume
    counts as one. A small number of folders says nothing, and runs of neighbouring files are held
    out, which are often of one subject; the files beside a run, and images that a run has
    too, are left out altogether. `seed` decides which.

    Raises InputError when fewer than 64 images are left, or their sizes differ where the
    architecture does not bring them to one size.
    """
    chosen = _sample(listing, max_images, seed)
    pixels, paths, rejected = [], [], 0
    decoded = decode_images(
        chosen, architecture.standardisation, reading, workers=workers, limits=limits
    )
    for done, images in enumerate(decoded, 1):
        for image in images:
            if image.pixels is None:
                rejected += 1
            else:
                pixels.append(torch.from_numpy(image.pixels).half())
                paths.append(f"{image.path}/{image.member}/{image.frame}".rstrip("/"))
        report("files read", done, len(chosen.files))
    if len(pixels) < 2 * _FEWEST:
        raise InputError(
            f"{listing.folder}: {len(pixels)} readable images; training needs {2 * _FEWEST}."
        )
    if len({image.shape for image in pixels}) > 1:
        raise InputError(
            f"{listing.folder}: images of several sizes, which this architecture "
            "takes one at a time. Give images of one size, or another --architecture."
        )
    if (side := min(pixels[0].shape)) < architecture.least_side:
        raise InputError(
            f"{listing.folder}: images of {side} pixels a side; this architecture needs "
            f"{architecture.least_side}. Give larger images, or another --architecture."
        )
    trained, held = _split(paths, held_out, seed)
    trained &= ~_repeated(pixels, held)
    if (left := int(trained.sum())) < _FEWEST:
        raise InputError(
            f"{listing.folder}: of {len(pixels)} images {int(held.sum())} are held out and {left} "
            f"are left to train on, and {_FEWEST} are needed. Give more images, or spread them "
            "over more folders."
        )
    return Images(_pool(pixels, paths, trained), _pool(pixels, paths, held), rejected)


def pairs(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Make images of which every kind of pair can be had, of n images drawn.

        images (n, H, W) -> sources (4n, H, W), the SSIM of all with all (4n, 4n)

    Sources are those drawn, perturbed ones, other subjects, and those drawn again.
    """
    clean = torch.cat([images, perturb(images, generator), other_subject(images, generator)])
    matrix = ssim_matrix(clean, clean, image_range(clean), stride=_SSIM_STRIDE)
    matrix = (matrix + matrix.T) / 2
    source = torch.arange(4 * len(images), device=images.device) % len(clean)
    return clean[source], matrix[source][:, source]


def range_weights(target: Tensor) -> Tensor:
    """Weigh pairs so that each tenth of the SSIM range that occurs counts alike."""
    bins = (target.clamp(0, 1) * _SSIM_BINS).long().clamp_max(_SSIM_BINS - 1)
    return 1 / torch.bincount(bins.flatten())[bins].float()


def _sample(listing: Listing, most: int, seed: int) -> Listing:
    """Keep at most `most` files, drawn at random, in their order."""
    if len(listing.files) <= most:
        return listing
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.choice(len(listing.files), most, replace=False))
    return replace(listing, files=tuple(listing.files[index] for index in kept))


def _pool(pixels: list[Tensor], paths: list[str], chosen: Tensor) -> Pool:
    places = torch.nonzero(chosen)[:, 0].tolist()
    names = [(PurePosixPath(paths[place]).name, paths[place]) for place in places]
    by_name = sorted(range(len(names)), key=names.__getitem__)
    return Pool(torch.stack([pixels[place] for place in places]), torch.tensor(by_name))


def _split(paths: list[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return which images are to train on, and which at least 32 to validate on: (N,) bool."""
    folders = [str(PurePosixPath(path).parent) for path in paths]
    rng = np.random.default_rng(seed)
    wanted = max(_FEWEST, round(share * len(paths)))
    if len(set(folders)) < _MANY_FOLDERS:
        return _runs(len(paths), wanted, int(rng.integers(len(paths))))
    held: set[str] = set()
    members = list(Counter(folders).items())
    for place in rng.permutation(len(members)):
        if wanted <= 0:
            break
        folder, size = members[place]
        held.add(folder)
        wanted -= size
    chosen = torch.tensor([folder in held for folder in folders])
    return ~chosen, chosen


def _runs(count: int, wanted: int, offset: int) -> tuple[Tensor, Tensor]:
    """Split into runs that are `wanted` images together, and what is not beside one of them."""
    runs = min(_RUNS, wanted // _RUN)
    apart = min(_APART, max(0, count - wanted - _FEWEST) // (2 * runs))
    places = runs * (torch.arange(count) + offset)
    held = places % count < wanted
    beside = (places + runs * apart) % count < wanted + 2 * runs * apart
    return ~beside, held


def _repeated(pixels: list[Tensor], held: Tensor) -> Tensor:
    """Say which images have the pixels of one that is held out: (N,) bool."""
    known = {pixels[place].numpy().tobytes() for place in torch.nonzero(held)[:, 0].tolist()}
    return torch.tensor([image.numpy().tobytes() in known for image in pixels])


def distinct(stop: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` distinct places below `stop`, on the CPU."""
    return torch.randperm(stop, generator=generator, device=generator.device)[:count].cpu()
