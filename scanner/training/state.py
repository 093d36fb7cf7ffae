"""What a training run keeps on disk beside its checkpoint: the history, and the state to resume.

OUT.csv     a row an evaluation
OUT.state   weights and moments after the last evaluation, in safetensors; removed at the end
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor
from torch.optim import Optimizer

from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.encoder.checkpoint_file import ZEROS, is_whole, with_digest
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import CheckpointError
from deepssim_scan.storage.files import make_folder, replacing
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Step:
    """What training says after a step; `mae` is None where the score was not evaluated."""

    step: int
    steps: int
    loss: float
    mae: float | None
    learning_rate: float
    seconds: float


class RunFiles:
    """The history and the state of the run that writes the checkpoint `out`.

    `identity` is what must be the same for a run to resume from the state of another.
    """

    def __init__(self, out: Path, identity: str) -> None:
        """Make the folder of `out`."""
        self.state = out.with_name(f"{out.name}.state")
        self.history = out.with_name(f"{out.name}.csv")
        self.identity = identity
        make_folder(out.parent)

    def begin(self, encoder: Encoder, optimizer: Optimizer, *, resume: bool) -> int:
        """Begin a history, or restore what an interrupted run left; return the first step.

        Raises CheckpointError for the state of another run, or one that is damaged.
        """
        step = self._restore(encoder, optimizer) if resume and self.state.exists() else 0
        rows = self._rows_until(step) if step else []
        self._write_history(rows)
        return step

    def record(self, step: Step, encoder: Encoder, optimizer: Optimizer) -> None:
        """Append a row to the history, and replace the state."""
        with self.history.open("a", newline="") as file:
            csv.writer(file).writerow(getattr(step, name) for name in Step.__slots__)
        tensors = {f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        facts = {"step": str(step.step), "run": self.identity, "sha256": ZEROS}
        with replacing(self.state) as file:
            file.write(with_digest(serialise(tensors, facts)))

    def finish(self) -> None:
        """Remove the state, when the checkpoint is there."""
        self.state.unlink(missing_ok=True)

    def _write_history(self, rows: Iterable[Iterable[object]]) -> None:
        with replacing(self.history) as file, TextIOWrapper(file, "ascii", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(Step.__slots__)
            writer.writerows(rows)

    def _rows_until(self, step: int) -> list[list[str]]:
        """Return the rows of the history that still hold when a run goes on after `step`.

        The history is for people: a run goes on without it.
        """
        if not self.history.is_file():
            return []
        with self.history.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(Step.__slots__)]
        return [row for row in rows if row[0].isdecimal() and int(row[0]) <= step]

    def _restore(self, encoder: Encoder, optimizer: Optimizer) -> int:
        """Load the state; return the step after which it was written."""
        metadata, tensors = self._read()
        if metadata.get("run") != self.identity:
            raise CheckpointError(
                f"{self.state}: left by a run with other images or options. Give the same "
                "ones to resume it, or leave --resume away to start anew."
            )
        parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        encoder.load_state_dict(parts["encoder"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        return int(metadata["step"])

    def _read(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        try:
            with safe_open(self.state, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise self._damaged(str(error)) from error
        if not is_whole(self.state.read_bytes()):
            raise self._damaged("its bytes are not those that were written")
        return metadata, tensors

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.state}: damaged ({why}). Leave --resume away to start anew.")


def identity_of(
    dataset: Dataset,
    config: TrainingConfig,
    architecture: Architecture,
    start: Sequence[str | None],
) -> str:
    """Identify a run by its options, architecture and images, and by the encoders of its start.

    A run with the same identity resumes from its state.
    """
    images = [each.digest() for each in (dataset.training, dataset.validation)]
    return json.dumps([asdict(config), asdict(architecture), *start, images])
