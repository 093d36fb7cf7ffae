"""A network in a file of somebody else: ONNX, or TorchScript.

file -> Network: batches of its input -> features (B, D)
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepssim_scan.errors import DependencyMissing, InputError, InputMissing

Network = Callable[[NDArray[np.generic]], NDArray[np.float32]]
"""What the file computes."""


def open_network(path: Path | None, what: str) -> Network:
    """Open a network file.

    A TorchScript file is a program, which is run: give one that you trust. Raises InputError where
    no file is given or it is no network, InputMissing where it is not there, DependencyMissing
    without onnxruntime for an ONNX file.
    """
    if path is None:
        raise InputError(f"{what} needs the file of its network: --metric {what}=FILE")
    if not path.is_file():
        raise InputMissing(f"{path}: there is no such file. Check the path.")
    return _checked(path, _onnx(path) if path.suffix == ".onnx" else _torchscript(path))


def _checked(path: Path, network: Network) -> Network:
    """Return a network that raises InputError for what it cannot take, or should not give."""

    def run(batch: NDArray[np.generic]) -> NDArray[np.float32]:
        try:
            found = network(batch)
        except Exception as error:  # whatever a network of somebody else does
            why = str(error).strip().rpartition("\n")[2][:200]  # PyTorch says it last
            raise InputError(
                f"{path}: this network fails on {batch.dtype} {batch.shape} ({why}). "
                "Give one for this metric."
            ) from error
        if found.ndim != 2 or len(found) != len(batch) or not np.isfinite(found).all():
            raise InputError(
                f"{path}: this network gives {found.shape} of {len(batch)} images, where a row of "
                "finite features each was wanted. Give one for this metric."
            )
        return found

    return run


def _onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyMissing(
            "onnxruntime, which runs ONNX files, is not installed. "
            "Install the extra: pip install 'deepssim-scan[cpu,evaluate]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # it has exceptions of its own, of no common class
        raise InputError(f"{path}: is no network in ONNX: {error}") from error
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0], np.float32)


def _torchscript(path: Path) -> Network:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, the files are not
            network = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise InputError(f"{path}: is no network in TorchScript: {error}") from error

    def run(batch: NDArray[np.generic]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(batch)).float().numpy(), np.float32)

    return run
