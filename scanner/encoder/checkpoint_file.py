"""The bytes of a checkpoint file: what it says of its encoder, read and verified without torch.

A safetensors file whose metadata are JSON texts: `format`, `architecture` (with how images are
standardised), `training` (what it was trained on and how), `version` (of this package), and
`sha256`, that of the file with 64 zeros in its own place, by which damage is found. The fingerprint
is of what makes embeddings: the architecture and the weights.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from deepssim_scan import __version__
from deepssim_scan.encoder.architecture import Architecture
from deepssim_scan.errors import CheckpointError, InputMissing

FORMAT = "deepssim-scan checkpoint 6"
ZEROS = "0" * 64
"""What stands in the metadata `sha256` until the digest is known."""

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm, not trained
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its encoder, by the values alone: the network may not be a possible one.

    `parameters` counts the numbers that training fits.
    """

    fingerprint: str
    parameters: int
    architecture: Mapping[str, Any]
    training: Mapping[str, Any]
    version: str


def read(path: Path, parse: Callable[[bytes], Parsed]) -> tuple[Header, Parsed]:
    """Read a file once, and return its header and what `parse` makes of its bytes.

    Raises InputMissing when there is no such file, CheckpointError when `parse` raises
    SafetensorError, or the file is of another format or is not the one that was written.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: no such checkpoint file.")
    data = path.read_bytes()  # once: what is hashed is what is used
    try:
        parsed = parse(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({reason(error)}). Pickled checkpoints are never "
            "loaded; `deepssim-scan convert` turns a TorchScript file into a checkpoint."
        ) from error
    _check(path, data)
    try:
        return _header(data), parsed
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise hostile(path, error) from error


def hostile(path: Path, error: Exception) -> CheckpointError:
    """Return the error of a file that is whole, and not the checkpoint of an encoder."""
    return CheckpointError(f"{path}: damaged or hostile checkpoint: {reason(error)}")


def metadata(architecture: Architecture, training: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a checkpoint that is to be written."""
    return {
        "format": FORMAT,
        "architecture": json.dumps(asdict(architecture)),
        "training": json.dumps(training),
        "version": __version__,
        "sha256": ZEROS,
    }


def with_digest(file: bytes) -> bytes:
    """Put the metadata of a safetensors file in order, and its SHA-256 into them, for `ZEROS`.

    They come in random order: without it, the same encoder would have another fingerprint each
    time that it is saved.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    whole = len(text).to_bytes(8, "little") + text + file[end:]
    return _with_sha256(whole, ZEROS, hashlib.sha256(whole).hexdigest())


def is_whole(file: bytes) -> bool:
    """Tell whether a safetensors file has the SHA-256 that `with_digest` put into it."""
    digest = _tensors(file).get("__metadata__", {}).get("sha256", "")
    zeroed = _with_sha256(file, digest, ZEROS)
    return zeroed != file and hashlib.sha256(zeroed).hexdigest() == digest


def reason(error: Exception) -> str:
    """Return the first line of what an error says, not longer than a line should be."""
    line = str(error).strip().partition("\n")[0][:200]
    return f"{line} is missing" if isinstance(error, KeyError) else line


def _check(path: Path, data: bytes) -> None:
    """Raise CheckpointError unless the file is of this format, and is what was written."""
    found = _tensors(data).get("__metadata__", {})
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but its format is {found.get('format')!r}, not "
            f"{FORMAT!r}. Make one with `deepssim-scan train` or `deepssim-scan convert`; where an "
            "index holds it, build the index again."
        )
    if not is_whole(data):
        raise CheckpointError(
            f"{path}: damaged: its bytes are not those that were written. Get the file again."
        )


def _header(data: bytes) -> Header:
    tensors = _tensors(data)
    facts = tensors.pop("__metadata__")
    trained = (value for name, value in tensors.items() if not name.endswith(_BUFFERS))
    return Header(
        _fingerprint(data, tensors, facts["architecture"]),
        sum(math.prod(each["shape"]) for each in trained),
        _object(facts["architecture"]),
        _object(facts["training"]),
        facts["version"],
    )


def _fingerprint(file: bytes, tensors: Mapping[str, Any], architecture: str) -> str:
    """Return the SHA-256 of the architecture, and of names, shapes and bytes of the weights."""
    shapes = json.dumps([_object(architecture), tensors], sort_keys=True).encode()
    start = 8 + int.from_bytes(file[:8], "little")
    return hashlib.sha256(shapes + memoryview(file)[start:]).hexdigest()


def _tensors(file: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file: a tensor's type and shape by its name."""
    return _object(file[8 : 8 + int.from_bytes(file[:8], "little")])


def _with_sha256(file: bytes, old: str, new: str) -> bytes:
    return file.replace(f'"sha256":"{old}"'.encode(), f'"sha256":"{new}"'.encode(), 1)


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"metadata holds {type(value).__name__} where an object was wanted")
    return value
