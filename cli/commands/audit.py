"""`deepssim-scan audit`: what is done every night, and what was found in each."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from deepssim_scan.cli import console, options
from deepssim_scan.cli.progress import reporting
from deepssim_scan.errors import InputError

if TYPE_CHECKING:
    from deepssim_scan.audit.config.audit import AuditConfig
    from deepssim_scan.audit.history import SetOfNight
    from deepssim_scan.audit.night import Audited

EXAMPLE = "deepssim-scan audit --config audit.toml"
DEFAULT = Path("audit.toml")
STYLES = {"passed": "bold green", "warned": "bold yellow", "failed": "bold red"}
_MOST = 10  # new findings of a set that are printed

app = typer.Typer(
    help="Audit synthetic sets against a training set, night by night.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, options.output_option("--out", metavar="FILE", help="Page to write.")]
Config = Annotated[
    Path, options.input_option("--config", metavar="FILE", help="What is to be done, in TOML.")
]
Init = Annotated[
    bool, options.output_option("--init", help="Write the file --config, with comments, and end.")
]
DryRun = Annotated[
    bool, options.output_option("--dry-run", help="Check the file, and say what would be done.")
]


@app.callback(invoke_without_command=True, epilog=f"Example: {EXAMPLE}")
def audit(
    context: typer.Context,
    config: Config = DEFAULT,
    init: Init = False,
    dry_run: DryRun = False,
    rebuild: options.Rebuild = False,
    json: options.Json = False,
) -> None:
    """Audit synthetic sets against a training set, night by night.

    Exit codes: 0 passed, or passed with warnings; 1 failed to run; 3 the policy is broken;
    4 incomplete: something was not looked at.
    """
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if (init or dry_run) and (json or rebuild or (init and dry_run)):
        raise typer.BadParameter(
            "--init and --dry-run audit nothing: give one of them, and neither --json nor --rebuild"
        )
    if init:
        _write(config)
        return
    from deepssim_scan.audit.config.audit import read_config

    asked = read_config(config)
    if dry_run:
        _show_plan(asked)
        return
    from deepssim_scan.audit.night import audit as night

    with reporting(console.messages) as progress:
        audited = night(asked, asked.machine.run(progress), rebuild=rebuild)
    console.show_json(audited.as_json()) if json else _show(audited)
    state = audited.decided.state
    options.leave(complete=state != "incomplete", flagged=state == "failed")


def _refuse_options(context: typer.Context) -> None:
    """Raise an error of usage for options before a subcommand, which has its own."""
    given = []
    for each in context.command.params:
        source = context.get_parameter_source(each.name or "")
        if source is not None and source.name == "COMMANDLINE":
            given.append(each.opts[0])
    if given:
        after = f"deepssim-scan audit {context.invoked_subcommand} {' '.join(given)} ..."
        raise typer.BadParameter(f"options go after the subcommand, as in: {after}")


def _write(path: Path) -> None:
    """Write the commented file, unless it is there."""
    from deepssim_scan.audit.config.template import TEMPLATE

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError as error:
        raise InputError(f"{path}: is there already, and is kept. Give another name.") from error
    console.say(f"Written: {path}. Change its folders, then run: deepssim-scan audit --dry-run")


def _show_plan(asked: "AuditConfig") -> None:
    """Print what an audit would do."""
    from deepssim_scan.audit.plan import plan_of

    for name, text in plan_of(asked):
        console.say(f"{name}: {text}")
    console.say("Nothing was done: this is --dry-run.")


def _show(audited: "Audited") -> None:
    """Print what the night found, what is wrong with it, and what it was decided to be."""
    from deepssim_scan.audit.outputs import told

    if audited.went_on:
        console.note("Went on with a night that was interrupted.")
    console.output.print(_table(audited))
    _show_gone(audited)
    for each in audited.sets:
        _show_open(each)
        _show_new(each)
    for name, text in audited.errors.items():
        console.warn(f"{name}: not audited: {text}")
    for name in audited.dropped:
        console.warn(f"{name}: was audited in the last night, and is not in the configuration.")
    for waiver in audited.orphans:
        console.note(
            f"Waiver of {waiver.finding} ({waiver.who}): no set has such a finding. Remove it."
        )
    for broken in audited.decided.warned:
        console.warn(f"Warning: {told(broken)}")
    for broken in audited.decided.failed:
        console.messages.print(f"Failed: {told(broken)}", style="bold red", markup=False)
    state = audited.decided.state
    console.say(f"Night {audited.night.number}: {state}", STYLES.get(state, "bold red"))


def _show_gone(audited: "Audited") -> None:
    """Print how many training images are gone, and which findings are gone with them."""
    if audited.gone:
        console.warn(
            f"{audited.gone:,} training images of the last night are gone: copies of them are not "
            f"found any more. The index has {audited.index.indexed:,}."
        )
    if audited.left:
        more = f" and {len(audited.left) - _MOST:,} more" if len(audited.left) > _MOST else ""
        them = "them" if audited.gone else "their training images"
        console.warn(f"Findings that are gone with {them}: {', '.join(audited.left[:_MOST])}{more}")


def _show_open(found: "SetOfNight") -> None:
    """Print what keeps a set without findings from being clean, whatever the policy asks."""
    for each in found.summary["mismatches"]:
        console.warn(f"{found.name}: {each['text']} {each['advice']} ({each['code']})")
    if undecidable := found.summary["counts"]["undecidable"]:
        console.warn(
            f"{found.name}: {undecidable:,} images have next to nothing on them that can be "
            "compared. Any of these may be a copy."
        )


def _table(audited: "Audited") -> Table:
    columns = "judged", "duplicates", "new", "persisting", "gone", "waived", "similar", "rejected"
    title = f"Night {audited.night.number}, {audited.night.started}"
    table = console.table_of(title, ["synthetic set"], columns)
    for each in audited.sets:
        values = (f"{each.quantities[name]:,.0f}" for name in columns)
        table.add_row(Text(each.name), *values)
    return table


def _show_new(found: "SetOfNight") -> None:
    """Print the findings of a set that the last night did not have, and expired waivers."""
    new = [each for each in found.findings if each.state == "new" and each.waiver != "holds"]
    for each in new[:_MOST]:
        console.say(f"New in {found.name}: {each.synthetic} copies {each.training} ({each.key})")
    if len(new) > _MOST:
        console.say(f"and {len(new) - _MOST:,} more new findings in {found.name}")
    for each in found.findings:
        if each.waiver == "expired" and each.state != "gone":
            console.warn(f"The waiver of {each.key} has expired: {each.synthetic}")


@app.command(epilog="Example: deepssim-scan audit history")
def history(config: Config = DEFAULT, json: options.Json = False) -> None:
    """List the nights, with what they were decided to be."""
    from deepssim_scan.audit.config.audit import read_config
    from deepssim_scan.audit.history import History

    with History(read_config(config).history.path) as found:
        nights = [(each, found.quantities(each)) for each in found.nights()]
    if json:
        value = [
            {"night": each.number, "started": each.started, "finished": each.finished}
            | {"state": each.state, "sets": sets, "errors": each.errors}
            for each, sets in nights
        ]
        console.show_json({"nights": value})
        return
    columns = "judged", "duplicates", "new", "gone", "waived"
    table = console.table_of("Nights", ["night", "started", "state", "set"], columns)
    for each, sets in nights:
        state = Text(each.state, STYLES.get(each.state, "bold red"))
        first = str(each.number), each.started, state
        for of_set, quantities in sets.items():
            values = [f"{quantities[name]:,.0f}" for name in columns]
            table.add_row(*first, Text(of_set), *values)
        for of_set in each.errors:
            table.add_row(*first, Text(f"{of_set} (not audited)"))
        if not (sets or each.errors):
            table.add_row(*first)
    console.output.print(table)


First = Annotated[int | None, typer.Argument(metavar="NIGHT", help="A night.")]
Second = Annotated[int | None, typer.Argument(metavar="NIGHT", help="A later night.")]


@app.command(epilog="Example: deepssim-scan audit diff 12 14")
def diff(
    first: First = None,
    second: Second = None,
    config: Config = DEFAULT,
    json: options.Json = False,
) -> None:
    """Compare the findings of two nights: by default the last two."""
    from deepssim_scan.audit.compare import compared
    from deepssim_scan.audit.config.audit import read_config
    from deepssim_scan.audit.history import History

    with History(read_config(config).history.path) as found:
        value = compared(found, first, second)
    if json:
        console.show_json(value.as_json())
        return
    console.say(f"From night {value.first} to night {value.second}:")
    for name, of_set in value.sets.items():
        for state, findings in of_set.items():
            for each in findings:
                console.say(
                    f"{name}: {state}: {each.synthetic} copies {each.training} ({each.key})"
                )
    for name in value.alone:
        console.warn(f"{name}: was audited in one of the two nights alone, so it is not compared.")
    for name in value.neither:
        console.warn(f"{name}: could not be queried in either night, so it is not compared.")
    if not value.sets:
        console.say("Nothing was compared: no set was audited in both nights.")
    elif not any(any(of_set.values()) for of_set in value.sets.values()):
        console.say("The findings are the same.")


@app.command(epilog="Example: deepssim-scan audit dossier --out dossier.html")
def dossier(config: Config = DEFAULT, out: Out = Path("dossier.html")) -> None:
    """Write the record that a release committee asks for, of the last night.

    What the audit knows is filled in, and what the section `dossier` of the configuration
    states. Gaps are shown.
    """
    from deepssim_scan.audit.config.audit import read_config
    from deepssim_scan.audit.dossier import dossier_page
    from deepssim_scan.audit.history import History
    from deepssim_scan.storage.files import replacing

    asked = read_config(config)
    with History(asked.history.path) as found:
        text = dossier_page(asked, found)
    with replacing(out) as file:
        file.write(text.encode("utf-8"))
    console.say(f"Written: {out}")


Reader = Annotated[
    str, options.input_option("--reader", metavar="NAME", help="Who decides; names the decisions.")
]
Blinded = Annotated[bool, options.output_option("--blinded", help="Show neither names nor scores.")]
Port = Annotated[
    int,
    options.machine_option(
        "--port", metavar="N", min=0, max=65535, help="Port on this machine; 0 takes a free one."
    ),
]


@app.command(epilog="Example: deepssim-scan audit review --reader 'A. Reader' --blinded")
def review(
    reader: Reader, config: Config = DEFAULT, blinded: Blinded = False, port: Port = 0
) -> None:
    """Show the findings that a reader has not decided on, on a page of this machine.

    The page is served on the loopback address, at an address that holds a secret token.
    """
    from deepssim_scan.audit.config.audit import read_config
    from deepssim_scan.audit.review.agreement import agreements
    from deepssim_scan.audit.review.opened import reviewing

    with (
        reporting(console.messages) as progress,
        reviewing(read_config(config), reader, progress, blinded=blinded, port=port) as served,
    ):
        console.say(f"{len(served.cases):,} findings to decide on. Open {served.address}")
        console.note("End with Ctrl-C.")
        with suppress(KeyboardInterrupt):
            served.serve_forever()
        console.say(f"Decided: {len(served.decided):,} of {len(served.cases):,}.")
        for each in agreements(served.history.decisions()):
            one, other = each.readers
            kappa = "" if each.kappa is None else f", Cohen's kappa {each.kappa:.2f}"
            console.say(f"{one} and {other} agree on {each.same} of {each.findings}{kappa}.")
