"""The reference's TorchScript weights (`best_model_jit.pt`) to a checkpoint."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepssim_scan.encoder.architecture import REFERENCE, Architecture
from deepssim_scan.encoder.checkpoint import Checkpoint, assemble, check_place, load, save
from deepssim_scan.encoder.checkpoint_file import reason
from deepssim_scan.errors import CheckpointError, InputError, InputMissing
from deepssim_scan.storage.files import sha256


def convert(torchscript: Path, out: Path) -> Checkpoint:
    """Turn the reference's TorchScript weights into the checkpoint `out`.

    The file is a program and this runs it: call it for files that you trust. Depths and widths
    are read from the weights.

    Raises InputMissing when there is no such file, InputError when `out` is that file, or no
    encoder can be written there, CheckpointError when it is not TorchScript or not a network of the
    reference.
    """
    if not torchscript.is_file():
        raise InputMissing(f"{torchscript}: no such file.")
    if out.exists() and out.samefile(torchscript):
        raise InputError(f"{out}: is the file that is converted. Choose another name.")
    check_place(out)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, the files are not
            weights = torch.jit.load(torchscript, map_location="cpu").state_dict()
        encoder = assemble(_reference_like(weights), weights)
    except (RuntimeError, LookupError, ValueError) as error:
        raise CheckpointError(
            f"{torchscript}: not TorchScript weights of the reference's network: {reason(error)}"
        ) from error
    facts = {"converted_from": torchscript.name, "sha256": sha256(torchscript)}
    save(out, encoder, facts)
    return load(out)


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
