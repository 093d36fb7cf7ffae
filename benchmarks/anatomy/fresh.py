"""Images that are drawn anew for every step of training, none of them twice.

It stands in for an `ImageSet`: what it draws depends on the state of the generator alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from anatomy.body import Draw
from anatomy.chest import chests
from anatomy.heads import head_projections, head_slices
from anatomy.limbs import limbs
from anatomy.trunk import sections
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.training.procedural import FAMILIES

GROUP = 4  # images of one kind, shown alike
SPREADS = 0.1, 0.3, 1.0  # how much the bodies of a group differ: as people, or more
ZOOM = 0.5  # at most, beyond 1, of images that are shown in a window
OBLONG = 0.6  # least ratio of the sides of an image


def _of_family(family: Callable[[Generator, int, int], Tensor], of: Draw, side: int) -> Tensor:
    return family(of.rng, of.count, side)


def _of_family(family: Callable[[Generator, int, int], Tensor], of: Draw, side: int) -> Tensor:
    return family(of.rng, of.count, side)


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

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw images, four of a kind: (count, H, W) standardised, on the generator's device."""
        rng = torch.Generator().manual_seed(generator.initial_seed())
        images = [image for _ in range(0, count, GROUP) for image in self._group(rng)]
        made = [torch.from_numpy(standardise(image.numpy(), self.rule)) for image in images[:count]]
        return torch.stack(made).to(generator.device)

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw images, as `draw` does."""
        return self.draw(count, generator)

    def digest(self) -> str:
        """Say what is drawn."""
        return json.dumps(self.shares)

    def _group(self, rng: Generator) -> Tensor:
        kinds = list(self.shares)
        weights = torch.tensor([self.shares[kind] for kind in kinds])
        kind = kinds[int(torch.multinomial(weights, 1, generator=rng))]
        view = window(self.rule.size or 128, rng)
        spread = SPREADS[int(torch.randint(len(SPREADS), (), generator=rng))]
        of = Draw(rng, GROUP, spread)
        images = view.of(KINDS[kind](of, view.drawn))
        negative = replace(of, spread=0.0).chance(0.08) > 0
        images = torch.where(negative, 1 - images, images).clamp(0, 1)
        return (255 * images).round()


@dataclass(frozen=True, slots=True)
class Window:
    """What is shown of images that are drawn `drawn` pixels a side: a part of them, or all."""

    drawn: int
    rows: slice
    columns: slice

    def of(self, images: Tensor) -> Tensor:
        """Cut it out: (N, drawn, drawn) -> (N, height, width)."""
        return images[:, self.rows, self.columns]


def window(side: int, rng: Generator) -> Window:
    """Draw what is shown: a part or the whole, half of the time each, and a third is square.

    An oblong image is padded to a square when it is read, as those of other people are.
    """
    part, square, zoom, shorter, portrait, *corner = torch.rand(7, generator=rng).tolist()
    full = side + round((part < 0.5) * ZOOM * zoom * side)
    ratio = 1 if square < 1 / 3 else OBLONG + (1 - OBLONG) * shorter
    sides = [side, round(ratio * side)]
    if portrait < 0.5:
        sides.reverse()
    starts = [round(share * (full - each)) for share, each in zip(corner, sides, strict=True)]
    rows, columns = (slice(a, a + each) for a, each in zip(starts, sides, strict=True))
    return Window(full, rows, columns)
