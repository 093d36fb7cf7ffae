"""Which device tensors are worked on, and what is done where a batch has no room on it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from deepssim_scan.errors import InputError
from deepssim_scan.progress import SILENT, Progress

Result = TypeVar("Result")


def pick_device(name: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda".

    Raises InputError for another name, or when CUDA is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, found {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device cuda was asked for, and torch finds none. Use --device cpu.")
    return "cuda" if name != "cpu" and available else "cpu"


def count_gpus() -> int:
    """Return how many GPUs torch finds."""
    return torch.cuda.device_count()


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Cut a tensor (N, ...) into batches of one size; on a CPU, the last one is filled up.

    What a CPU computes of an image depends on the size of its batch in the last bits.
    """
    for batch in images.split(size):
        missing = size - len(batch) if images.device.type == "cpu" else 0
        yield torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch


@dataclass(slots=True)
class BatchRunner:
    """Runs batches on `device`: in smaller parts where it has no room, or else on the CPU.

    Each batch is tried whole on the device first: what filled it may be gone by then. `task` is
    what the warning calls the work, as in "embedding".
    """

    device: str
    task: str
    progress: Progress = SILENT
    _warned: bool = field(default=False, init=False)

    def run(self, work: Callable[..., Result], *batch: Tensor) -> list[Result]:
        """Return what `work(device, *part)` gives of each part of a batch, in order.

        `batch` is one or more tensors of the same length, which are cut alike: into one part where
        the device has room. `work` brings them to the device that it is given.

        Raises torch.OutOfMemoryError when the CPU has no room either.
        """
        size = len(batch[0])
        if self.device == "cpu" or not size:
            return [work("cpu", *batch)]
        while size:
            found = self._tried(work, batch, size)
            if found is not None:
                return found
            torch.cuda.empty_cache()
            size //= 2
        self._warn()
        return [work("cpu", *batch)]

    def _tried(
        self, work: Callable[..., Result], batch: tuple[Tensor, ...], size: int
    ) -> list[Result] | None:
        """Work on parts of so many images; None when one of them has no room."""
        parts = zip(*(each.split(size) for each in batch), strict=True)
        try:
            return [work(self.device, *part) for part in parts]
        except torch.OutOfMemoryError:
            return None

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            self.progress.warn(
                f"{self.device}: not enough memory for {self.task}, not even of one image. A batch "
                "without room is computed on the CPU instead, which gives the same result more "
                "slowly; the next one is tried on the GPU again. Free its memory to be faster."
            )
