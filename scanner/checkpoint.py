"""A checkpoint: one safetensors file that holds an encoder and all that is needed to use it.

Its metadata are JSON texts: `format`, `architecture` (with how images are standardised),
`thresholds`, `training` (what it was trained on and how), `version` (of this package), and
`sha256`, that of the file with 64 zeros in its own place, by which damage is found. Its
fingerprint is the SHA-256 of the file, so it covers weights and metadata alike.

Pickled checkpoints are never loaded: they are programs. So are TorchScript files, such as the
reference's official weights; `convert` runs one once, when told to trust it.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from deepssim_scan import __version__
from deepssim_scan.encoder import REFERENCE, Architecture, Encoder
from deepssim_scan.errors import CheckpointError, InputMissing
from deepssim_scan.files import replacing, sha256
from deepssim_scan.standardise import Standardisation

FORMAT = "deepssim-scan checkpoint 3"
_ZEROS = "0" * 64
BUNDLED = Path(__file__).parent / "bundled" / "encoder.safetensors"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The scores above which a match is `similar`, and above which it is `duplicate`.

    A pair that was verified is a duplicate when its SSIM is above `certain`, whatever its score, or
    above `ssim` with a score above `duplicate`. The defaults of the scores are the reference's
    (arXiv:2509.16582). That of `ssim` is below what a copy with noise of 5 % of the range has, that
    of `certain` below what one that was turned, shifted or compressed has.
    """

    similar: float = 0.60
    duplicate: float = 0.85
    ssim: float = 0.80
    certain: float = 0.95

    def __post_init__(self) -> None:
        if not -1 <= self.similar <= self.duplicate <= 1:
            raise CheckpointError(
                f"thresholds must satisfy -1 <= similar <= duplicate <= 1, "
                f"found similar {self.similar:g}, duplicate {self.duplicate:g}"
            )
        if not -1 <= self.ssim <= self.certain <= 1:
            raise CheckpointError(
                f"thresholds must satisfy -1 <= ssim <= certain <= 1, "
                f"found ssim {self.ssim:g}, certain {self.certain:g}"
            )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An encoder, ready to use, and what its file says of it."""

    encoder: Encoder
    thresholds: Thresholds
    training: Mapping[str, Any]
    version: str
    fingerprint: str

    @property
    def architecture(self) -> Architecture:
        """The encoder's architecture."""
        return self.encoder.architecture


def save(path: Path, encoder: Encoder, thresholds: Thresholds, training: Mapping[str, Any]) -> None:
    """Write a checkpoint, in place of what was there once it is whole."""
    metadata = {
        "format": FORMAT,
        "architecture": json.dumps(asdict(encoder.architecture)),
        "thresholds": json.dumps(asdict(thresholds)),
        "training": json.dumps(training),
        "version": __version__,
        "sha256": _ZEROS,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()
    }
    with replacing(path) as file:
        file.write(_sealed(_ordered(serialise(weights, metadata))))


def load(path: Path = BUNDLED) -> Checkpoint:
    """Read a checkpoint, the bundled one by default, with its encoder in evaluation mode.

    Raises InputMissing when there is no such file, CheckpointError when it is anything but a
    whole checkpoint of finite weights that fit its architecture.
    """
    if not path.is_file():
        raise InputMissing(f"{path}: no such checkpoint file.")
    data = path.read_bytes()  # once: what is hashed is what is used
    try:
        weights = parse(data)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({_reason(error)}). Pickled checkpoints are never "
            "loaded; `deepssim-scan convert` turns a TorchScript file into a checkpoint."
        ) from error
    metadata = _header(data).get("__metadata__", {})
    fingerprint = hashlib.sha256(data).hexdigest()
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but its format is {metadata.get('format')!r}, not "
            f"{FORMAT!r}. Make one with `deepssim-scan train` or `deepssim-scan convert`; where an "
            "index holds it, build the index again."
        )
    if not _is_sealed(data):
        raise CheckpointError(
            f"{path}: damaged: its bytes are not those that were written. Get the file again."
        )
    try:
        encoder = _encoder(_object(metadata["architecture"]), weights)
        thresholds = Thresholds(**_object(metadata["thresholds"]))
        training, version = _object(metadata["training"]), metadata["version"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged or hostile checkpoint: {_reason(error)}") from error
    return Checkpoint(encoder, thresholds, training, version, fingerprint)


def convert(torchscript: Path, out: Path) -> Checkpoint:
    """Turn the reference's TorchScript weights (`best_model_jit.pt`) into a checkpoint.

    The file is a program and this runs it: call it for files that you trust. Depths and widths
    are read from the weights; thresholds are the reference's.

    Raises CheckpointError when the file is not TorchScript or not a network of the reference.
    """
    if not torchscript.is_file():
        raise InputMissing(f"{torchscript}: no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, the files are not
            weights = torch.jit.load(torchscript, map_location="cpu").state_dict()
        encoder = _encoder(asdict(_reference_like(weights)), weights)
    except (RuntimeError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"{torchscript}: not TorchScript weights of the reference's network: {_reason(error)}"
        ) from error
    save(
        out,
        encoder,
        Thresholds(),
        {"converted_from": torchscript.name, "sha256": sha256(torchscript)},
    )
    return load(out)


def _ordered(file: bytes) -> bytes:
    """Sort the metadata in a safetensors file, which come in random order.

    Without it, the same encoder would have another fingerprint each time that it is saved.
    """
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[end:]


def _header(file: bytes) -> dict[str, Any]:
    """Return the header of a safetensors file's bytes."""
    return _object(file[8 : 8 + int.from_bytes(file[:8], "little")])


def _sealed(file: bytes) -> bytes:
    """Put the SHA-256 of a checkpoint whose `sha256` is zeros into it."""
    digest = hashlib.sha256(file).hexdigest()
    return _with_sha256(file, _ZEROS, digest)


def _is_sealed(file: bytes) -> bool:
    """Tell whether a checkpoint's bytes have the SHA-256 that they carry."""
    digest = _header(file)["__metadata__"].get("sha256", "")
    zeroed = _with_sha256(file, digest, _ZEROS)
    return zeroed != file and hashlib.sha256(zeroed).hexdigest() == digest


def _with_sha256(file: bytes, old: str, new: str) -> bytes:
    return file.replace(f'"sha256":"{old}"'.encode(), f'"sha256":"{new}"'.encode(), 1)


def _encoder(architecture: dict[str, Any], weights: Mapping[str, Tensor]) -> Encoder:
    """Build an encoder and give it its weights; nothing is allocated until the shapes agree."""
    lists = ("depths", "widths", "pose")
    parts: dict[str, Any] = {key: tuple(architecture[key]) for key in lists}
    parts["standardisation"] = Standardisation(**architecture["standardisation"])
    shape = Architecture(**(architecture | parts))
    blocks, channels = sum(shape.depths), max(sum(shape.widths), sum(shape.pose))
    if blocks > 1_000 or channels > 100_000:
        raise ValueError(f"an encoder of {blocks} blocks and {channels} channels")
    with torch.device("meta"):
        encoder = Encoder(shape)
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


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in weights.items()}


def _object(text: str | bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"metadata holds {type(value).__name__} where an object was wanted")
    return value


def _reason(error: Exception) -> str:
    """Return the first line of what an error says, not longer than a line should be."""
    line = str(error).strip().partition("\n")[0][:200]
    return f"{line} is missing" if isinstance(error, KeyError) else line


def _reference_like(weights: Mapping[str, Tensor]) -> Architecture:
    """Read depths, widths and dimension from weights under the reference's names."""
    blocks = [name.split(".")[1:3] for name in weights if name.endswith(".layer_scale")]
    stages = sorted({int(stage) for stage, _ in blocks})
    return replace(
        REFERENCE,
        depths=tuple(sum(int(stage) == each for stage, _ in blocks) for each in stages),
        widths=tuple(
            weights[f"feature_extractor.{each}.0.layer_scale"].shape[0] for each in stages
        ),
        dimension=weights["fc.6.weight"].shape[0],
    )
