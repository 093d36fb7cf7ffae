"""Images that are drawn anew for every step of training, none of them twice.

It stands in for an `ImageSet`. What it draws depends on the seed of the generator alone, not on how
much was drawn of it.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn import functional

from anatomy.body import Draw
from anatomy.chest import chests
from anatomy.heads import head_projections, head_slices
from anatomy.limbs import limbs
from anatomy.trunk import sections
from anatomy.window import cut, window
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.rejection import Rejected
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.training.procedural import FAMILIES

GROUP = 4  # images of one kind, shown alike
SPREADS = 0.1, 0.3, 1.0  # how much the bodies of a group differ: as people, or more
ZOOM = 0.5  # at most, beyond 1, of images that are shown in a window
PARTS, SMALL = 0.5, 0.2  # of the groups, which show a part, or lie in a wide margin
LEAST = 0.6  # of the side, which is left of what lies in a margin
NEGATIVE = 0.08  # of the groups, which have their greys inverted
SIDE = 128  # pixels


def _of_family(family: Callable[[Generator, int, int], Tensor], of: Draw, side: int) -> Tensor:
    return family(of.rng, of.count, side)


def _in_margin(rng: Generator, images: Tensor) -> Tensor:
    """Shrink some groups, and put them in a margin of their darkest grey."""
    small, share, *corner = torch.rand(4, generator=rng).tolist()
    if small >= SMALL:
        return images
    side = images.shape[1]
    inner = round(side * (LEAST + (1 - LEAST) * share))
    top, left = (round(each * (side - inner)) for each in corner)
    shrunk = functional.interpolate(images[:, None], inner, mode="bilinear", antialias=True)[:, 0]
    framed = images.amin((1, 2), keepdim=True).expand_as(images).clone()
    framed[:, top : top + inner, left : left + inner] = shrunk
    return framed


KINDS: dict[str, Callable[[Draw, int], Tensor]] = {
    "heads": head_slices,
    "head-projections": head_projections,
    "chests": chests,
    "limbs": limbs,
    "sections": sections,
    **{name: partial(_of_family, family) for name, family in FAMILIES.items()},
}


@dataclass(frozen=True, slots=True)
class Fresh:
    """Draws images of some kinds, each with its share."""

    shares: dict[str, float]
    rule: Standardisation

    def __len__(self) -> int:
        """Return how many images are kept: none."""
        return 0

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw images, four of a kind: (count, H, W) standardised, on the generator's device."""
        rng = torch.Generator().manual_seed(generator.initial_seed())
        images: list[Tensor] = []
        while len(images) < count:
            for image in self._group(rng):
                with suppress(Rejected):  # nothing is on it
                    images.append(torch.from_numpy(standardise(image.numpy(), self.rule)))
        return torch.stack(images[:count]).to(generator.device)

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw images, as `draw` does."""
        return self.draw(count, generator)

    def digest(self) -> str:
        """Say what is drawn."""
        return json.dumps(self.shares)

    def _group(self, rng: Generator) -> list[Tensor]:
        """Draw images of one kind, half of the time all shown in the same window."""
        kinds = list(self.shares)
        weights = torch.tensor([self.shares[kind] for kind in kinds])
        kind = kinds[int(torch.multinomial(weights, 1, generator=rng))]
        part = bool(torch.rand((), generator=rng) < PARTS)
        view = window(part, SIDE, rng, ZOOM)
        spread = SPREADS[int(torch.randint(len(SPREADS), (), generator=rng))]
        of = Draw(rng, GROUP, spread)
        images = _in_margin(rng, KINDS[kind](of, view.drawn))
        negative = replace(of, spread=0.0).chance(NEGATIVE) > 0
        images = torch.where(negative, 1 - images, images).clamp(0, 1)
        images = (255 * images).round()  # as 8-bit files are
        if torch.rand((), generator=rng) < 0.5:
            return list(view.of(images))
        views = (cut(view.drawn, SIDE, rng) for _ in images)
        return [each.of(image[None])[0] for each, image in zip(views, images, strict=True)]
