"""`deepssim-scan verify`: verify a report or a release."""

from pathlib import Path
from typing import Annotated

import typer

from deepssim_scan.cli import options

EXAMPLE = "deepssim-scan verify cleared --public-key release.pub"

Verified = Annotated[Path, typer.Argument(metavar="PATH", help="A report or a release.")]
PublicKey = Annotated[
    Path | None,
    options.input_option(
        "--public-key", metavar="FILE", help="Public key in PEM that a release must be signed with."
    ),
]
Report = Annotated[
    Path | None,
    options.input_option(
        "--report",
        metavar="DIR",
        help="Report that a release was made from: it must have cleared every released file, and a "
        "sample of them is embedded again.",
    ),
]
Sample = Annotated[
    int,
    options.verdict_option("--sample", metavar="N", min=0, help="Images that are embedded again."),
]
Seed = Annotated[int, options.verdict_option("--seed", metavar="N", help="Draws the sample.")]


def verify(
    path: Verified,
    public_key: PublicKey = None,
    report: Report = None,
    sample: Sample = 100,
    seed: Seed = 0,
    json: options.Json = False,
    workers: options.Workers = None,
    max_seconds: options.MaxSeconds = options.LIMITS.max_seconds,
    max_memory: options.MaxMemory = options.LIMITS.max_memory / options.GIB,
) -> None:
    """Verify every byte of a report or a release, its signature, and a sample from the files."""
    from deepssim_scan.audit.release.verify import VerifyConfig
    from deepssim_scan.audit.release.verify import verify as verified
    from deepssim_scan.cli.commands.check import show

    config = VerifyConfig(sample, seed, public_key, report)
    with options.running(workers, max_seconds, max_memory) as run:
        checked = verified(path, config, run)
    show(checked, json)
