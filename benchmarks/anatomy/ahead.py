"""Draws images ahead of the steps that take them, in other processes.

Of a step of training on one core, a third was the drawing of its images.
"""

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np
import torch
from torch import Generator, Tensor

from anatomy.fresh import Fresh

AHEAD = 4  # draws of each process


@dataclass(slots=True)
class Ahead:
    """Draws what `source` draws; while a draw is used, `workers` processes make the next ones.

    Each step of training has the seed after that of the step before.
    """

    source: Fresh
    workers: int
    pool: ProcessPoolExecutor = field(init=False)
    drawn: dict[tuple[int, int], "Future[np.ndarray]"] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        started = get_context("spawn")
        self.pool = ProcessPoolExecutor(self.workers, started, torch.set_num_threads, (1,))

    def __len__(self) -> int:
        """Return how many images are kept: none."""
        return len(self.source)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw images: (count, H, W) standardised, on the generator's device."""
        first = generator.initial_seed()
        wanted = [(count, seed) for seed in range(first, first + 1 + AHEAD * self.workers)]
        self.drawn = {
            each: self.drawn.get(each) or self.pool.submit(_draw, self.source, *each)
            for each in wanted
        }
        return torch.from_numpy(self.drawn[wanted[0]].result()).to(generator.device)

    def some(self, count: int, generator: Generator) -> Tensor:
        """Draw images, as `draw` does."""
        return self.draw(count, generator)

    def digest(self) -> str:
        """Say what is drawn."""
        return self.source.digest()


def _draw(source: Fresh, count: int, seed: int) -> np.ndarray:
    return source.draw(count, Generator().manual_seed(seed)).numpy()
