"""The documents name only what is there: modules, commands, options, files, tests, columns."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from deepssim_scan.cli.app import app
from deepssim_scan.reporting.matches import _COLUMNS as COLUMNS

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DECISIONS = ROOT / "docs" / "decisions"
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
USER_DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "deepssim-scan"


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _code_lines(text: str) -> list[str]:
    """Return the lines of the indented blocks, those that end in a backslash joined."""
    blocks = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    return re.sub(r"\\\n\s*", "", blocks).splitlines()


def _inline_code(text: str) -> list[str]:
    """Return what stands between backticks, also where a line ends in between."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


@cache
def _commands() -> dict[str, set[str]]:
    """Return the options of each command of the program, and of the program itself as ""."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    commands = {"": group, **group.commands}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            commands |= {f"{name} {each}": inner for each, inner in command.commands.items()}
    return {
        name: {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        | {"--help"}
        for name, command in commands.items()
    }


def _calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """Give every call of the program in a document: its command, and the options given."""
    for line in [*_code_lines(text), *_inline_code(text)]:
        called = re.match(rf"(?:\$ )?(?:\.venv/bin/)?{PROGRAM}(?: (.*))?$", line)
        if not called:
            continue
        words = shlex.split(called[1] or "", comments=True)
        command = words[0] if words and re.fullmatch(r"[a-z-]+", words[0]) else ""
        name = "" if command.startswith("-") else command
        if len(words) > 1 and f"{name} {words[1]}" in _commands():
            name = f"{name} {words[1]}"
        yield name, [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]


def _has_code(path: Path) -> bool:
    """Tell whether a module holds more than its docstring."""
    body = ast.parse(path.read_text("utf-8")).body
    return len(body) > 1 or any(not isinstance(node, ast.Expr) for node in body)


def test_the_tree_in_the_architecture_names_every_module_and_no_other() -> None:
    stack: list[str] = []
    named = []
    for line in _code_lines(ARCHITECTURE.read_text("utf-8")):
        entry = re.match(r"( *)([\w/]+/|\w+\.py)(?:\s{2,}\S|$)", line)
        if not entry:
            continue
        del stack[len(entry[1]) // 2 :]
        if entry[2].endswith("/"):
            stack.append(entry[2])
        elif stack and stack[0] in ("scanner/", "index/", "cli/"):
            named.append("".join(stack) + entry[2])
    there = [
        str(path.relative_to(ROOT))
        for room in ("scanner", "index", "cli")
        for path in (ROOT / room).rglob("*.py")
        if _has_code(path)
    ]
    assert sorted(named) == sorted(there)


def test_the_order_of_imports_is_the_contract_of_the_linter() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = [sorted(layer.split(" | ")) for layer in config["contracts"][0]["layers"]]
    order = re.search(r"    (errors, progress < [\w,<\s]+?)\n\n", ARCHITECTURE.read_text("utf-8"))
    assert order is not None
    assert [layer.split(", ") for layer in " ".join(order[1].split()).split(" < ")] == layers[::-1]


def test_faiss_is_required_as_the_documents_say() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    required = [extras["cpu"], extras["gpu"]]
    text = (DECISIONS / "0023-faiss-1.15.md").read_text("utf-8")
    assert required == [[name] for name in re.findall(r"`(faiss-[cg]pu>=[\d.]+)`", text)]


@pytest.mark.parametrize("path", DOCS, ids=_id)
def test_what_is_linked_is_there(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCS, ids=_id)
def test_files_of_the_repository_that_are_named_are_there(path: Path) -> None:
    text = path.read_text("utf-8")
    folders = "scanner|index|cli|benchmarks|tests|docs"
    named = set(
        re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:py|c|md|toml|json|csv))", text)
    )
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", USER_DOCS, ids=_id)
def test_commands_and_their_options_exist(path: Path) -> None:
    for command, options in _calls(path.read_text("utf-8")):
        assert command in _commands(), f"{PROGRAM} {command}"
        assert set(options) <= _commands()[command], f"{PROGRAM} {command}: {options}"


def test_options_that_the_readme_names_exist() -> None:
    every = set().union(*_commands().values())
    codes = _inline_code((ROOT / "README.md").read_text("utf-8"))
    named = {option for code in codes for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)}
    assert named - every == set()


@pytest.mark.parametrize("path", DOCS, ids=_id)
def test_options_of_benchmarks_and_of_the_fault_trials_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    shared = (ROOT / "benchmarks" / "harness.py").read_text("utf-8")
    for line in [*_code_lines(text), *_inline_code(text)]:
        called = re.match(r"(?:python )?((?:benchmarks|tests/faults)/\w+\.py|bench_\w+\.py) ", line)
        if not called:
            continue
        file = called[1] if "/" in called[1] else f"benchmarks/{called[1]}"
        source = (ROOT / file).read_text("utf-8") + shared
        for option in re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z-]*)", line):
            name = option.replace("-", "_")  # the harness makes options of keyword arguments
            assert re.search(rf"[\"']--(?:no-)?{option}[\"']|\b{name}=|[\"']{name}[\"']", source), (
                line
            )


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in _commands() if not re.search(rf"\b{name}\b", text)] == []


def test_the_readme_names_the_columns_of_matches() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    row = re.search(r"\| `matches\.parquet` \| `([^`]+)`", text)
    assert row is not None
    assert row[1].split(", ") == COLUMNS.names


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in USER_DOCS:
        text = path.read_text("utf-8")
        lines = [*_code_lines(text), *_inline_code(text)]
        named = {made[1] for line in lines for made in re.finditer(r"\bmake ([a-z]+)", line)}
        assert named <= targets, path


def test_every_decision_is_in_the_list_of_decisions() -> None:
    listed = re.findall(r"\]\((\d{4}-[\w.-]+\.md)\)", (DECISIONS / "README.md").read_text("utf-8"))
    assert listed == sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))


@pytest.mark.parametrize("path", sorted(DECISIONS.glob("[0-9]*.md")), ids=_id)
def test_a_decision_has_its_number_and_a_date(path: Path) -> None:
    title, _, date = path.read_text("utf-8").splitlines()[:3]
    assert title.startswith(f"# {int(path.name[:4])}. ")
    assert re.match(r"\d{4}-\d\d-\d\d", date)


def test_tests_that_are_named_exist() -> None:
    for path in DOCS:
        text = path.read_text("utf-8")
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
            tree = ast.parse((ROOT / file).read_text("utf-8"))
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in functions, f"{path.name}: {file}::{name}"
