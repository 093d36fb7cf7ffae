"""A checkpoint: one safetensors file that holds an encoder and all that is needed to use it.

`checkpoint_file` says what its bytes are. Pickled checkpoints are never loaded: they are programs.
So are TorchScript files, such as the reference's official weights; `torchscript.convert` runs one
once, when told to trust it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import deserialize

from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.checkpoint_file import hostile, metadata, read, with_digest
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.ingest.config.standardisation import Standardisation
from deepssim_scan.storage.files import make_folder, replacing

if TYPE_CHECKING:
    from torch import Tensor

    from deepssim_scan.encoder.network import Encoder

_MOST_BLOCKS, _MOST_CHANNELS = 1_000, 100_000  # far above any encoder in use


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds an encoder, and what it says of it; the encoder is read when it is used."""

    architecture: Architecture
    training: Mapping[str, Any]
    version: str
    fingerprint: str
    path: Path

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder, in evaluation mode.

        Raises CheckpointError when its weights do not fit its architecture or are not finite, or
        when the file holds another encoder by now.
        """
        from safetensors.torch import load as parse

        header, weights = read(self.path, parse)
        if header.fingerprint != self.fingerprint:
            raise _replaced(self.path, header.fingerprint, self.fingerprint)
        try:
            return assemble(self.architecture, weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise hostile(self.path, error) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Be pickled as the name of its file, which another process reads once.

        The bundled one is that of the package, wherever another machine has it.
        """
        return _loaded_once, (None if self.path == BUNDLED else self.path, self.fingerprint)

    @property
    def seen(self) -> frozenset[str]:
        """Digests of the images that the encoder was trained on, as far as its file names them."""
        return frozenset(self.training.get("seen", ()))


def save(path: Path, encoder: "Encoder", training: Mapping[str, Any]) -> None:
    """Write a checkpoint, in place of what was there once it is whole."""
    from safetensors.torch import save as serialise

    make_folder(path.parent)
    weights = {
        name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()
    }
    facts = metadata(encoder.architecture, training)
    with replacing(path) as file:
        file.write(with_digest(serialise(weights, facts)))


def check_place(out: Path) -> None:
    """Raise InputError where a checkpoint cannot be written to `out`.

    A folder is there, or a file that is none and would be lost, or a file where a folder must be.
    Call it first of all: a checkpoint is ready last.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder, and a file is to be written. Choose another name.")
    if out.exists() and out.stat().st_size:
        try:
            opened(out)
        except CheckpointError as error:
            raise InputError(
                f"{out}: is a file, and no whole encoder: it is not replaced. Choose another name."
            ) from error
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not there.is_dir():
        raise InputError(
            f"{out}: is to be written below {there}, which is a file. Choose another name."
        )


def opened(path: Path = BUNDLED) -> Checkpoint:
    """Read what a checkpoint, the bundled one by default, says of its encoder.

    Raises InputMissing when there is no such file, CheckpointError when it is none, or is damaged.
    """
    header, _ = read(path, deserialize)
    try:
        architecture = _architecture(header.architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise hostile(path, error) from error
    return Checkpoint(
        architecture, header.training, header.version, header.fingerprint, path.absolute()
    )


def load(path: Path = BUNDLED) -> Checkpoint:
    """Read a checkpoint, the bundled one by default, with its encoder in evaluation mode.

    Raises InputMissing when there is no such file, CheckpointError when it is anything but a
    whole checkpoint of finite weights that fit its architecture.
    """
    found = opened(path)
    _ = found.encoder
    return found


@cache
def _loaded_once(path: Path | None, wanted: str) -> Checkpoint:
    """Read a checkpoint that another process has read; raises CheckpointError for another one."""
    found = opened(path or BUNDLED)
    if found.fingerprint != wanted:
        raise _replaced(found.path, found.fingerprint, wanted)
    return found


def _replaced(path: Path, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds encoder {found[:12]}, this run began with {wanted[:12]}. It was replaced "
        "meanwhile, or is another one there: use one encoder."
    )


def fingerprint(path: Path) -> str:
    """Return the fingerprint of a checkpoint file; raises what `load` does of its bytes."""
    return read(path, deserialize)[0].fingerprint


def assemble(architecture: Architecture, weights: Mapping[str, "Tensor"]) -> "Encoder":
    """Build an encoder with given weights, in evaluation mode.

    Nothing is allocated until the shapes agree. Raises ValueError when they do not, when a weight
    is not finite, or when the architecture is larger than any in use.
    """
    import torch

    from deepssim_scan.encoder.network import Encoder

    blocks = sum(architecture.depths)
    channels = max(sum(architecture.widths), sum(architecture.pose))
    if blocks > _MOST_BLOCKS or channels > _MOST_CHANNELS:
        raise ValueError(f"an encoder of {blocks} blocks and {channels} channels")
    with torch.device("meta"):
        encoder = Encoder(architecture)
    wanted, found = _shapes(encoder.state_dict()), _shapes(weights)
    if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        raise ValueError(
            f"{len(wrong)} tensors do not fit the architecture, the first {wrong[0]!r}: "
            f"found {found.get(wrong[0], 'none')}, wanted {wanted.get(wrong[0], 'none')}"
        )
    encoder.load_state_dict(dict(weights), assign=True)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    return encoder.eval()


def _architecture(values: Mapping[str, Any]) -> Architecture:
    """Return the architecture that the metadata of a file name."""
    parts: dict[str, Any] = {key: tuple(values[key]) for key in ("depths", "widths", "pose")}
    if "exponents" in values:  # files from before there were any lack them
        parts["exponents"] = tuple(values["exponents"])
    parts["standardisation"] = Standardisation(**values["standardisation"])
    return Architecture(**{**values, **parts})


def _shapes(weights: Mapping[str, "Tensor"]) -> dict[str, str]:
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in weights.items()}
