"""`deepssim-scan release`: copy the images that were judged and are no copies."""

from pathlib import Path
from typing import Annotated

from deepssim_scan.cli import console, options
from deepssim_scan.ingest.config import RunContext

EXAMPLE = "deepssim-scan release --report deepssim-report --out cleared --key release.pem"

Report = Annotated[Path, options.input_option("--report", metavar="DIR", help="Report of a query.")]
Out = Annotated[
    Path, options.output_option("--out", metavar="DIR", help="New folder to copy the images to.")
]
Key = Annotated[
    Path | None,
    options.output_option(
        "--key", metavar="FILE", help="Ed25519 key in PEM, to sign release.json with."
    ),
]
NoSimilar = Annotated[
    bool,
    options.verdict_option("--no-similar", help="Keep back images with the verdict similar, too."),
]
AllowIncomplete = Annotated[
    bool,
    options.verdict_option(
        "--allow-incomplete",
        help="Release of a report that is not complete, or of other training images, too.",
    ),
]


def release(
    report: Report,
    out: Out,
    key: Key = None,
    no_similar: NoSimilar = False,
    allow_incomplete: AllowIncomplete = False,
) -> None:
    """Copy the images that were judged and are no copies, and bind them by a statement."""
    from deepssim_scan.audit.release.release import STATEMENT, ReleaseConfig
    from deepssim_scan.audit.release.release import release as released

    config = ReleaseConfig(key, not no_similar, allow_incomplete)
    result = released(report, out, config, RunContext())
    console.say(f"{result.released:,} files released in {result.folder}")
    for why, count in sorted(result.kept_back.items()):
        console.say(f"Kept back: {count:,} {why}")
    how = "signed" if result.signed else "not signed: give --key"
    console.note(f"{result.folder / STATEMENT} lists them with their digests ({how}).")
