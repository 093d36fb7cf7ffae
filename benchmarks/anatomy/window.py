"""What is shown of an image: all of it or a part, square or oblong.

An oblong image is padded to a square when it is read, as those of other people are.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

OBLONG = 0.6  # least ratio of the sides of an image


@dataclass(frozen=True, slots=True)
class Window:
    """What is shown of images that are drawn `drawn` pixels a side: a part of them, or all."""

    drawn: int
    rows: slice
    columns: slice

    def of(self, images: Tensor) -> Tensor:
        """Cut it out: (N, drawn, drawn) -> (N, height, width)."""
        return images[:, self.rows, self.columns]


def window(part: bool, side: int, rng: Generator, zoom: float = 1.0) -> Window:
    """Draw what is shown: a part or the whole, and half of the time without two of its margins.

    A part is of an image that is drawn up to 1 + `zoom` times as large.
    """
    more = torch.rand((), generator=rng).item()
    return cut(side + round(part * zoom * more * side), side, rng)


def cut(drawn: int, side: int, rng: Generator) -> Window:
    """Draw what is shown of an image of `drawn` pixels a side."""
    shorter, portrait, *corner = torch.rand(4, generator=rng).tolist()
    sides = [side, round(min(1, OBLONG + 2 * (1 - OBLONG) * shorter) * side)]
    if portrait < 0.5:
        sides.reverse()
    starts = [round(share * (drawn - each)) for share, each in zip(corner, sides, strict=True)]
    rows, columns = (slice(a, a + each) for a, each in zip(starts, sides, strict=True))
    return Window(drawn, rows, columns)
