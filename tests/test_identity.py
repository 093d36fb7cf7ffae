"""What identifies a stage names all that its result depends on."""

import ast
import sys
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepssim_scan.jobs import identity

ROOMS = ("imaging", "ingest", "encoder", "index", "matching", "store")
EXACT = {"safetensors"}  # which reads numbers as they are


def imported(source):
    """The names of the packages that a module imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


def test_every_library_that_computes_is_among_the_versions():
    """SciPy was not, which computes thumbnails: an update kept those of another SciPy."""
    found = set()
    for room in ROOMS:
        (folder,) = import_module(f"deepssim_scan.{room}").__path__
        for path in Path(folder).rglob("*.py"):
            found.update(imported(path.read_text("utf-8")))
    others = found - set(sys.stdlib_module_names) - {"deepssim_scan"} - EXACT
    assert {"torch", "scipy", "faiss"} <= others
    told, distributions = identity.versions().keys(), packages_distributions()
    assert [name for name in sorted(others) if not told & {*distributions[name]}] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_change_of_the_code_that_computes_is_another_version(tmp_path, monkeypatch, room):
    for each in ROOMS:
        (tmp_path / each).mkdir()
        (tmp_path / each / "a.py").write_text("one")
    rooms = {f"deepssim_scan.{each}": SimpleNamespace(__path__=[tmp_path / each]) for each in ROOMS}
    monkeypatch.setattr(identity, "import_module", rooms.__getitem__)
    before = identity._code()
    (tmp_path / room / "a.py").write_text("two")
    assert identity._code() != before
