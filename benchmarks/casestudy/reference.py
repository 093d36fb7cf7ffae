"""The path of the reference's weights: its network, trained a little, converted and evaluated.

training images -> train --architecture base -> TorchScript -> convert -> evaluate

The official weights are a TorchScript file of a ConvNeXt-Base. Here that file is made of a network
of the same architecture, trained from random weights as far as `--steps` go. It shows that the path
works, and no quality.

    python benchmarks/casestudy/reference.py --work casestudy/brain --steps 20
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness
from steps import command

from deepssim_scan.encoder import checkpoint


def main() -> None:
    """Train, export, convert, evaluate, print and write."""
    options = _options()
    work, folder = options.work, options.work / "reference"
    folder.mkdir(exist_ok=True)
    trained, exported, converted = (
        folder / name
        for name in ("trained.safetensors", "best_model_jit.pt", "converted.safetensors")
    )
    if not trained.exists():
        asked = ["--init", "none", "--architecture", "base", "--steps", options.steps]
        command("train", "--images", work / "training", "--out", trained, *asked)
    export(trained, exported, options.side)
    command("convert", exported, "--out", converted, "--trust-torchscript")
    same = checkpoint.load(trained).encoder.state_dict().items()
    theirs = checkpoint.load(converted).encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in same)
    sides = ["--training", work / "training", "--synthetic", work / "aligned"]
    out = ["--metric", f"deepssim={converted}", "--fit", "--out", folder / "evaluation"]
    command("evaluate", "--pairs", work / "labelled.csv", *sides, *out)
    told = json.loads((folder / "evaluation" / "evaluation.json").read_text("utf-8"))
    (found,) = told["metrics"].values()
    harness.console.print(found["fitted"])
    harness.write("reference_path", options, {}, {}, fitted=found["fitted"])


def export(trained: Path, out: Path, side: int) -> None:
    """Write a checkpoint's network as TorchScript."""
    encoder = checkpoint.load(trained).encoder.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is, the weights are not
        torch.jit.trace(encoder, torch.zeros(2, 1, side, side)).save(out)


def _options() -> argparse.Namespace:
    made = harness.parser(__doc__, {"steps": 20, "side": 64})
    made.add_argument("--work", type=Path, required=True, help="folder of one modality of run.py")
    return made.parse_args()


if __name__ == "__main__":
    main()
