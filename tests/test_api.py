"""The public API: what `import deepssim_scan` offers, and that its page in docs/ is true."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepssim_scan
from deepssim_scan import errors
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.training.pseudo_subjects import mni152, slices

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_finds_the_copy(tmp_path):
    volume = mni152()
    for number in range(9):
        seed = torch.Generator().manual_seed(2_000_000_000 + number)
        image = to_image(slices(volume, 2, [0.5], 128, seed)[0])
        for folder in ("training", "synthetic"):
            (tmp_path / folder).mkdir(exist_ok=True)
        if number < 8:
            image.save(tmp_path / "training" / f"{number}.png")
        if number > 6:
            image.save(tmp_path / "synthetic" / f"{number}.png")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "8 training images indexed, 0 rejected",
        "complete: True, flagged: 1",
        "7.png copies 7.png: SSIM 1.00",
        "index intact: True",
        "report intact: True",
    ]
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert (summary["candidates"], summary["top_k"]) == (8, 3)


def test_every_public_name_is_on_the_page_and_the_page_names_no_other():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    cells = " ".join(row.split("|")[1] for row in rows)
    named = {re.match(r"\w+", quoted)[0] for quoted in re.findall(r"`([^`]+)`", cells)}
    public = set(deepssim_scan.__all__)
    assert named <= public
    quoted = set(re.findall(r"`(?:deepssim_scan\.)?(\w+)(?:\([^`]*\))?`", PAGE))
    assert public <= quoted


def test_type_checkers_see_the_names_that_are_there():
    source = Path(deepssim_scan.__file__).read_text(encoding="utf-8")
    (block,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    homes = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    homes["load_checkpoint"] = homes.pop("load")
    assert {*homes, "__version__"} == set(deepssim_scan.__all__)
    for name, (module, original) in homes.items():
        found = getattr(deepssim_scan, name)
        assert found is getattr(sys.modules[module], original), name


def test_a_name_that_is_no_part_of_it_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'querry'"):
        deepssim_scan.querry  # noqa: B018
    assert "query" in dir(deepssim_scan)


def test_jobs_stay_functions_after_their_modules_were_imported():
    code = (
        "import deepssim_scan.jobs.query, deepssim_scan.jobs.check, deepssim_scan.jobs.train\n"
        "import deepssim_scan as d\n"
        "assert all(callable(f) for f in (d.query, d.check, d.train, d.build_index, d.repair))\n"
        "from deepssim_scan import query; assert query is d.query\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_is_public():
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert "ScanError" in kinds
    assert kinds <= set(deepssim_scan.__all__)
