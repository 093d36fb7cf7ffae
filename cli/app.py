"""The command line: puts the commands together.

Exit codes: 0 done; 1 the run failed; 2 usage; 3 images were flagged, only with
--fail-on-flagged; 4 incomplete, some input was rejected. 4 goes before 3.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from deepssim_scan.cli import console
from deepssim_scan.cli.commands import (
    audit,
    build_index,
    calibrate,
    check,
    convert,
    demo,
    evaluate,
    info,
    query,
    release,
    train,
    verify,
)
from deepssim_scan.errors import ScanError, described


class _HelpLast:
    """A command whose --help stands in the last panel, so that its own options come first."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option --help."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.rich_help_panel = "Help"
        return option


class Command(_HelpLast, TyperCommand):
    """A command."""


class Group(_HelpLast, TyperGroup):
    """A command that has others."""


app = typer.Typer(
    name="deepssim-scan",
    help="Find synthetic medical images that copy a patient of the training set.",
    epilog="Exit codes: 0 done; 1 failed; 2 usage; 3 flagged images (with --fail-on-flagged), or "
    "an audit that failed; 4 incomplete: something was not looked at.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for function, example in (
    (build_index.build_index, build_index.EXAMPLE),
    (query.query, query.EXAMPLE),
    (calibrate.calibrate, calibrate.EXAMPLE),
    (check.check, check.EXAMPLE),
    (info.info, info.EXAMPLE),
    (release.release, release.EXAMPLE),
    (verify.verify, verify.EXAMPLE),
    (train.train, train.EXAMPLE),
    (convert.convert, convert.EXAMPLE),
    (demo.demo, demo.EXAMPLE),
    (evaluate.evaluate, evaluate.EXAMPLE),
):
    app.command(cls=Command, epilog=f"Example: {example}")(function)
app.add_typer(audit.app, name="audit", cls=Group)


def _version(wanted: bool) -> None:
    if wanted:
        from deepssim_scan import __version__

        console.say(f"deepssim-scan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line; an error that the user can act on is one line and exit code 1."""
    try:
        app()
    except (ScanError, OSError) as error:
        text = f"error: {described(error)}"
        console.messages.print(text, style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
