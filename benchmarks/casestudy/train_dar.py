"""The contrastive network of Dar et al. (arXiv:2402.01054), trained on the training images.

It is written as TorchScript, which `deepssim-scan evaluate --metric dar=FILE` reads. A run that was
stopped goes on.

    python benchmarks/casestudy/train_dar.py --training DIR --out dar.pt
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contrastive import train

from deepssim_scan.ingest.config import RunContext

SIDE = 128  # pixels of standardised images


def main() -> None:
    """Train, and write the network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="images, two views of each")
    options = parser.parse_args()
    network = train(
        options.training, options.out, options.steps, options.batch, 1e-3, RunContext(workers=1)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(network, torch.zeros(2, 1, SIDE, SIDE)).save(options.out)
    options.out.with_suffix(".state").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
