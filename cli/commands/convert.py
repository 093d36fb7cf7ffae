"""`deepssim-scan convert`: the reference's TorchScript weights to a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from deepssim_scan.cli import console, options

EXAMPLE = "deepssim-scan convert best_model_jit.pt --out deepssim.safetensors --trust-torchscript"

TorchScript = Annotated[
    Path, typer.Argument(metavar="FILE", help="The reference's best_model_jit.pt.")
]
Trust = Annotated[
    bool,
    options.input_option(
        "--trust-torchscript", help="Run FILE, which is a program, to read its weights."
    ),
]
Out = Annotated[
    Path, options.output_option("--out", metavar="FILE", help="Checkpoint file to write.")
]


def convert(
    torchscript: TorchScript,
    *,
    trust_torchscript: Trust = False,
    out: Out,
    json: options.Json = False,
) -> None:
    """Convert the TorchScript weights of the DeepSSIM paper to a checkpoint."""
    if not trust_torchscript:
        raise typer.BadParameter(
            f"{torchscript}: a TorchScript file is a program, and converting it runs it. "
            "Give --trust-torchscript if you know where the file comes from."
        )
    from deepssim_scan.encoder import torchscript as reference
    from deepssim_scan.reporting.describe import describe

    reference.convert(torchscript, out)
    facts = describe(out)
    console.show_json(facts) if json else console.show_facts(str(out), facts)
