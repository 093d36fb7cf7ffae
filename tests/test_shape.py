"""Modules and functions stay short enough to be read: what ruff has no rule for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for folder in ("scanner", "index", "cli") for path in (ROOT / folder).rglob("*.py")
)
LONGEST_MODULE, LONGEST_FUNCTION = 350, 45  # lines
NINE_OF_TEN = 17


def lines_of_functions(source, *, command=False):
    """Give each function's name and length in lines, but for its docstring.

    Of a command, parameters are not counted: there is one an option.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines - command * len(node.args.args)


FUNCTIONS = [
    (str(path.relative_to(ROOT)), name, lines)
    for path in MODULES
    for name, lines in lines_of_functions(
        path.read_text(encoding="utf-8"), command=path.parent.name == "commands"
    )
]


def test_lines_are_counted_without_the_docstring():
    text = '"""One.\n\n    Two.\n    """'
    source = f"def f(\n    a,\n):\n    {text}\n    def g():\n        return a\n    return g\n"
    assert dict(lines_of_functions(source)) == {"f": 6, "g": 2}
    assert dict(lines_of_functions(source, command=True)) == {"f": 5, "g": 2}


def test_all_modules_are_looked_at():
    assert len(MODULES) > 80
    assert len(FUNCTIONS) > 500


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_350_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_MODULE


def test_no_function_is_longer_than_45_lines():
    assert [each for each in FUNCTIONS if each[2] > LONGEST_FUNCTION] == []


def test_nine_of_ten_functions_are_within_17_lines():
    short = sum(lines <= NINE_OF_TEN for *_, lines in FUNCTIONS)
    assert short >= 0.9 * len(FUNCTIONS)
