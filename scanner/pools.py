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
        first, third = _distinct(last, quarter, generator), _distinct(last, quarter, generator)
        apart = torch.randint(
            1, _NAME_DISTANCE + 1, (quarter,), generator=generator, device=generator.device
        ).cpu()
        named = self.by_name[torch.cat([third, (third + apart).clamp_max(last)])]
        chosen = torch.cat([first, first + 1, named])
        return self.pixels[chosen].to(generator.device).float()

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw at most `count` different images: (n, H, W) float32."""
        chosen = _distinct(len(self.pixels), count, generator)
        return self.pixels[chosen].to(generator.device).float()


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

    From 20 folders on, folders are held out whole, since a folder is usually a subject; a small
    number of folders says nothing, and single images are held out. `seed` decides which.

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
    held = _held_out(paths, held_out, seed)
    if (left := int((~held).sum())) < _FEWEST:
        raise InputError(
            f"{listing.folder}: {len(pixels) - left} of {len(pixels)} images are held out, which "
            f"leaves {left} to train on, and {_FEWEST} are needed. Give more images, or spread "
            "them over more folders."
        )
    return Images(_pool(pixels, paths, ~held), _pool(pixels, paths, held), rejected)


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


def _held_out(paths: list[str], share: float, seed: int) -> Tensor:
    """Return which images are for validation: (N,) bool, at least 32."""
    folders = [str(PurePosixPath(path).parent) for path in paths]
    groups = folders if len(set(folders)) >= _MANY_FOLDERS else paths
    rng = np.random.default_rng(seed)
    held: set[str] = set()
    wanted = max(_FEWEST, round(share * len(paths)))
    members = list(Counter(groups).items())
    for place in rng.permutation(len(members)):
        if wanted <= 0:
            break
        group, size = members[place]
        held.add(group)
        wanted -= size
    return torch.tensor([group in held for group in groups])


def _distinct(stop: int, count: int, generator: Generator) -> Tensor:
    """Draw `count` distinct places below `stop`, on the CPU."""
    return torch.randperm(stop, generator=generator, device=generator.device)[:count].cpu()
