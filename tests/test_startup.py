"""What starts fast loads no large library: help, the version, usage errors and `info`."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pictures import TINY, TINY_CONVNEXT, write
from typer.main import get_command

from deepssim_scan.cli.app import app
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import SMALL
from deepssim_scan.encoder.bundled import BUNDLED
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig, QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.reporting.describe import describe

LARGE = {"torch", "faiss", "zarr", "numpy", "pyarrow", "nibabel", "pydicom", "PIL", "scipy"}
COMMANDS = sorted(get_command(app).commands)


def started(folder, code, *arguments):
    """Run Python code in a process: exit code, output of both kinds, and what it had loaded."""
    loaded = folder / "modules.json"
    program = (
        "import atexit, json, pathlib, sys\n"
        f"tell = lambda: pathlib.Path({str(loaded)!r}).write_text(json.dumps([*sys.modules]))\n"
        f"atexit.register(tell)\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
    )
    return done.returncode, done.stdout + done.stderr, set(json.loads(loaded.read_text()))


def program(folder, *arguments):
    """Run the command line so."""
    code = "sys.argv[0] = 'deepssim-scan'; from deepssim_scan.cli import main; main()"
    return started(folder, code, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An encoder, an index of twelve images, and a report on them."""
    root = tmp_path_factory.mktemp("made")
    images = write(root / "images", 12, per_folder=6)
    torch.manual_seed(0)
    checkpoint.save(root / "e.safetensors", Encoder(TINY), {"note": "none"})
    run = RunContext("cpu", workers=0)
    build_index(images, root / "index", IndexConfig(root / "e.safetensors"), run)
    config = QueryConfig(canaries=CanaryConfig(0))
    query(images, root / "index", root / "report", config, run)
    return root


def test_the_watch_sees_a_large_module_that_is_loaded(tmp_path):
    code, _, loaded = started(tmp_path, "import numpy; from deepssim_scan.cli import main; main()")
    assert code == 2  # no command was given
    assert loaded & LARGE == {"numpy"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)]
)
def test_help_and_version_load_no_large_library(tmp_path, arguments):
    code, text, loaded = program(tmp_path, *arguments)
    assert code == 0, text
    assert "deepssim-scan" in text
    assert not loaded & LARGE


TRAIN = ("train", "--images", ".", "--out", "o")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["query"],
        ["query", "--synthetic", ".", "--top-k", "0"],
        ["query", "--synthetic", ".", "--no-verify", "--training", "."],
        ["query", "--synthetic", ".", "--rule", "reference", "--false-alarm", "0.1"],
        ["query", "--synthetic", ".", "--similar", "0.5"],
        ["query", "--synthetic", ".", "--false-alarm", "2"],
        ["build-index", "--training", ".", "--adapt", "always", "--no-calibrate"],
        ["calibrate", "--index", ".", "--candidates", "0"],
        ["build-index", "--training", ".", "--slices", "abc"],
        ["build-index", "--training", ".", "--include", "*.png", "--manifest", "m.csv"],
        ["build-index", "--training", ".", "--subject-key", "nowhere"],
        ["check", ".", "--images", "."],
        [*TRAIN, "--init", "none", "--architecture", "vit"],
        [*TRAIN, "--architecture", "small"],
        [*TRAIN, "--batch", "6"],
        ["convert", "f.pt", "--out", "o"],
    ],
    ids=" ".join,
)
def test_a_usage_error_loads_no_large_library(tmp_path, arguments):
    code, text, loaded = program(tmp_path, *arguments)
    assert code == 2, text
    assert "Error" in text
    assert not loaded & LARGE


@pytest.mark.parametrize("what", ["e.safetensors", "index", "index/store", "report"])
def test_info_loads_no_large_library(tmp_path, made, what):
    code, text, loaded = program(tmp_path, "info", made / what, "--json")
    assert code == 0, text
    assert json.loads(text) == json.loads(json.dumps(describe(made / what)))
    assert not loaded & LARGE


@pytest.mark.parametrize("what", ["absent", ".", "not-ours"])
def test_info_of_something_else_loads_no_large_library(tmp_path, what):
    (tmp_path / "not-ours").write_bytes(b"no safetensors file")
    code, text, loaded = program(tmp_path, "info", what)
    assert (code, text.count("\n")) == (1, 1)
    assert not loaded & LARGE


@pytest.mark.parametrize(
    "architecture", [TINY, TINY_CONVNEXT, SMALL, replace(TINY_CONVNEXT, dimension=5)]
)
def test_info_counts_the_parameters_that_torch_counts(tmp_path, architecture):
    path = tmp_path / "e.safetensors"
    encoder = Encoder(architecture)
    checkpoint.save(path, encoder, {})
    assert describe(path)["parameters"] == sum(each.numel() for each in encoder.parameters())


def test_info_of_a_checkpoint_says_what_loading_it_says():
    found, loaded = describe(BUNDLED), checkpoint.load(BUNDLED)
    assert found["fingerprint"] == loaded.fingerprint
    assert found["architecture"]["widths"] == list(loaded.architecture.widths)
    assert found["training"] == {**loaded.training, "seen": len(loaded.seen)}
    assert found["version"] == loaded.version


def test_the_process_that_only_gives_and_collects_work_loads_no_torch(tmp_path, people):
    images = write(tmp_path / "images", 12, per_folder=6)
    encoder = tmp_path / "e.safetensors"
    checkpoint.save(encoder, Encoder(TINY), {"note": "none"})
    common = ("--workers", "1", "--device", "cpu")
    building = ("--training", images, "--index", "index", "--encoder", encoder)
    asked = ("--synthetic", images, "--index", people / "index", "--canaries", "12")
    for command in (("build-index", *building), ("query", *asked)):
        code, text, loaded = program(tmp_path, *command, *common)
        assert code == 0, text
        assert loaded & {"torch", "faiss", "zarr", "nibabel", "pydicom"} == {"faiss", "zarr"}


def test_decode_workers_do_not_load_torch(tmp_path):
    # A worker process imports the program's script, and then the pipeline.
    code = "import deepssim_scan.cli, deepssim_scan.ingest.pipeline"
    assert "torch" not in started(tmp_path, code)[2]


def test_importing_the_package_loads_no_large_library(tmp_path):
    _, _, loaded = started(tmp_path, "import deepssim_scan")
    assert not loaded & LARGE
    assert "importlib.metadata" not in loaded


def test_the_installed_program_tells_its_version(tmp_path):
    command = [str(Path(sys.executable).parent / "deepssim-scan"), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("deepssim-scan 0.")
