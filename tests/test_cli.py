"""The commands as a user types them: output, messages and exit codes."""

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import TINY, drawn
from PIL import Image
from typer.main import get_command

from deepssim_scan import checkpoint
from deepssim_scan.checkpoint import Thresholds
from deepssim_scan.cli import main
from deepssim_scan.cli.commands import app
from deepssim_scan.encoder import Encoder
from deepssim_scan.procedural import dead_leaves

COMMANDS = get_command(app).commands


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["deepssim-scan", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Twelve training images, two synthetic ones of which one is a copy, and an encoder."""
    monkeypatch.chdir(tmp_path)
    for number in range(13):
        image = Image.fromarray(drawn(number, 40, dead_leaves))
        for folder in ("training", "synthetic"):
            Path(folder).mkdir(exist_ok=True)
        if number < 12:
            image.save(f"training/{number:02d}.png")
        if number > 10:
            image.save(f"synthetic/{number}.png")
    torch.manual_seed(0)
    checkpoint.save(Path("e.safetensors"), Encoder(TINY), Thresholds(0.5, 0.9999), {})
    return tmp_path


@pytest.fixture
def indexed(run, folders):
    code, *_ = run("build-index", "--training", "training", "--encoder", "e.safetensors")
    assert code == 0
    return folders


def test_the_two_commands_work_with_no_further_option(run, folders):
    code, out, _ = run("build-index", "--training", "training", "--encoder", "e.safetensors")
    assert code == 0
    assert "12 training images indexed in deepssim-index" in out
    assert "Images: 12 listed = 12 embedded + 0 rejected" in out
    code, out, err = run("query", "--synthetic", "synthetic")
    assert code == 0
    assert "11.png" in out
    assert "duplicate" in out
    assert "Report: deepssim-report" in out
    assert "Images: 2 listed = 2 embedded + 0 rejected" in out
    assert "synthetic images 2/2" in err
    assert sorted(path.name for path in Path("deepssim-report").iterdir()) == [
        "flagged.csv",
        "job.json",
        "matches.parquet",
        "rejected.csv",
        "summary.json",
        "synthetic",
    ]


def test_the_table_says_what_makes_a_duplicate(run, indexed):
    def printed(*options):
        _, out, _ = run("query", "--synthetic", "synthetic", *options)
        return out

    assert "SSIM > 0.95, or score > 0.9999 and SSIM > 0.8" in printed()
    assert "SSIM > 0.97, or score > 0.9999 and SSIM > 0.97" in printed("--ssim", "0.97")
    assert "SSIM > 0.9, or score > 0.9999 and SSIM > 0.8" in printed("--certain", "0.9")
    assert "SSIM >" not in printed("--no-verify")
    code, _, err = run("query", "--synthetic", "synthetic", "--certain", "0.7")
    assert code == 1
    assert "found ssim 0.8, certain 0.7" in err


def test_the_number_of_views_can_be_chosen(run, indexed):
    code, out, _ = run("query", "--synthetic", "synthetic", "--views", "1", "--json")
    assert (code, json.loads(out)["views"]) == (0, 1)
    code, _, err = run("query", "--synthetic", "synthetic", "--views", "6")
    assert code == 2
    assert "--views" in err


def test_json_is_the_summary_and_nothing_else(run, indexed):
    code, out, _ = run("query", "--synthetic", "synthetic", "--json")
    assert code == 0
    written = json.loads(Path("deepssim-report/summary.json").read_text())
    assert json.loads(out) | {"checksum": written["checksum"]} == written


def test_row_27_fewer_training_images_than_matches_is_said(run, indexed):
    code, _, err = run("query", "--synthetic", "synthetic", "--top-k", "50")
    assert code == 0
    assert "Only 12 matches an image: there are no more training images." in err


def test_exit_code_3_when_images_are_flagged_and_it_was_asked_for(run, indexed):
    assert run("query", "--synthetic", "synthetic", "--fail-on-flagged")[0] == 3
    Path("synthetic/11.png").unlink()
    assert run("query", "--synthetic", "synthetic", "--fail-on-flagged")[0] == 0


def test_exit_code_4_goes_before_3_and_says_incomplete(run, indexed):
    Path("synthetic/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    code, _, err = run("query", "--synthetic", "synthetic", "--fail-on-flagged")
    assert code == 4
    assert "Not looked at: 1 synthetic and 0 training images." in err
    assert "Rejected images: 1; deepssim-report/rejected.csv says why." in err


def test_a_manifest_a_volume_and_a_range_of_slices(run, indexed):
    volume = np.random.default_rng(0).normal(size=(9, 40, 40)).astype(np.float32)
    np.save("synthetic/v.npy", volume)
    Path("images.csv").write_text("path,subject\nv.npy,Jane Doe\n")
    options = ("--synthetic", "synthetic", "--manifest", "images.csv", "--slices", "0.2:0.8")
    code, _, err = run("query", *options)
    assert (code, "Give one with --subject-key FILE" in err) == (1, True)
    Path("key").write_bytes(b"0123456789abcdef")
    options = (*options, "--subject-key", "key")
    code, out, _ = run("query", *options)
    assert code == 0
    assert "Images: 5 listed = 5 embedded + 0 rejected" in out
    assert "v.npy#axis=0,slice=2" in out.replace("\n", "")
    catalog = Path("deepssim-report/synthetic/catalog.sqlite").read_bytes()
    hashed = hmac.new(b"0123456789abcdef", b"Jane Doe", hashlib.sha256).hexdigest()
    assert (b"Jane" in catalog, hashed.encode() in catalog) == (False, True)


def test_check_says_what_is_damaged_and_repairs_it(run, indexed):
    code, out, _ = run("check", "deepssim-index")
    assert (code, "index is intact (12 listed, 12 rows, 0 rejected)" in out) == (0, True)
    chunk = Path("deepssim-index/store/embeddings.zarr/c.0.0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    code, out, _ = run("check", "deepssim-index")
    assert code == 1
    assert "0 to 11" in out
    code, _, err = run("query", "--synthetic", "synthetic")
    assert code == 1
    assert "rows 0 to 11 are missing or not those that were written" in err
    code, out, _ = run("check", "deepssim-index", "--json")
    assert (code, json.loads(out)["problems"][0]["rows"]) == (1, [0, 11])
    code, out, _ = run("check", "deepssim-index", "--repair")
    assert (code, "is intact" in out) == (0, True)


def test_a_subject_key_must_be_long(run, folders):
    Path("short.key").write_bytes(b"secret")
    options = ("--training", "training", "--subject-key", "short.key")
    code, _, err = run("build-index", *options)
    assert code == 2
    assert "a subject key of 6 bytes, and 16 are needed" in err


def test_exit_code_1_is_one_line_and_no_traceback(run, folders):
    code, out, err = run("query", "--synthetic", "synthetic")
    assert code == 1
    assert out == ""
    assert err.startswith("error: deepssim-index: holds no finished index")
    assert "deepssim-scan build-index --training" in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_exit_code_2_for_usage(run):
    assert run("query")[0] == 2
    assert run("query", "--synthetic", ".", "--top-k", "0")[0] == 2
    for options in (
        ("--slices", "abc"),
        ("--window", "1"),
        ("--device", "tpu"),
        ("--axis", "3"),
        ("--max-memory", "inf"),
        ("--subject-key", "nowhere"),
        ("--include", "*.png", "--manifest", "m.csv"),
    ):
        assert run("build-index", "--training", ".", *options)[0] == 2, options
    train = ("train", "--images", ".", "--out", "o")
    assert run(*train, "--init", "none", "--architecture", "vit")[0] == 2
    code, _, err = run(*train, "--architecture", "small")
    assert code == 2
    assert "goes with --init none" in err
    assert run("check", ".", "--images", ".")[0] == 2


def test_names_cannot_colour_the_terminal_or_pass_for_markup(run, indexed):
    Path("synthetic/11.png").rename("synthetic/[red]\x1b[31m.png")
    _, out, _ = run("query", "--synthetic", "synthetic")
    assert r"[red]\x1b[31m.png" in out.replace("\n", "")
    assert "\x1b" not in out


def test_train_resumes_and_its_encoder_indexes(run, folders):
    for number in range(100, 160):
        Image.fromarray(drawn(number, 40, dead_leaves)).save(f"training/{number}.png")
    options = ("--images", "training", "--steps", "2", "--batch", "4", "--device", "cpu")
    code, out, err = run("train", *options, "--out", "t.safetensors", "--resume", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["kind"] == "checkpoint"
    assert facts["training"]["config"]["steps"] == 2
    assert "step 2/2" in err
    assert run("build-index", "--training", "training", "--encoder", "t.safetensors")[0] == 0
    code, out, _ = run("info", "deepssim-index", "--json")
    assert json.loads(out)["encoder"] == facts["fingerprint"]


@pytest.mark.parametrize("init", ["bundled", "none"])
def test_train_prints_what_it_gained_on_images_held_out(run, folders, init):
    for number in range(100, 160):
        Image.fromarray(drawn(number, 40, dead_leaves)).save(f"training/{number}.png")
    options = ("--images", "training", "--steps", "2", "--batch", "4", "--device", "cpu")
    code, out, err = run("train", *options, "--out", "t.safetensors", "--init", init)
    assert code == 0
    assert "near copies" not in err
    assert "On the 32 images held out" in out
    (error,) = (line for line in out.splitlines() if "error of the score" in line)
    cells = [cell.strip() for cell in error.strip("│ ").split("│")]
    before, after = cells[1:]
    assert (before == "-") == (init == "none")
    assert 0 < float(after) < 1
    poses = checkpoint.load(Path("t.safetensors")).training["config"]["pose_steps"]
    assert poses == (1 if init == "none" else 0)


def test_train_without_steps_fits_thresholds_and_nothing_else(run, folders):
    for number in range(10, 80):
        Image.fromarray(drawn(number, 40, dead_leaves)).save(f"training/{number}.png")
    options = ("--images", "training", "--steps", "0", "--device", "cpu", "--json")
    code, out, err = run("train", *options, "--out", "t.safetensors", "--init", "e.safetensors")
    assert code == 0, err
    assert json.loads(out)["training"]["config"]["steps"] == 0
    before, after = (checkpoint.load(Path(f"{name}.safetensors")) for name in "et")
    weights = zip(before.encoder.parameters(), after.encoder.parameters(), strict=True)
    assert all((old == new).all() for old, new in weights)
    assert after.thresholds != before.thresholds


def test_train_warns_of_thresholds_fitted_on_near_copies(run, folders):
    Path("training/again").mkdir()
    for number in range(100, 140):
        pixels = drawn(number, 40, dead_leaves).clip(0, 254)
        Image.fromarray(pixels).save(f"training/{number}.png")
        other = pixels + (pixels > 128).astype(np.uint8)
        Image.fromarray(other).save(f"training/again/{999 - number}.png")
    options = ("--images", "training", "--steps", "1", "--batch", "4", "--device", "cpu")
    code, _, err = run("train", *options, "--out", "t.safetensors")
    assert code == 0
    assert "near copies of images trained on" in " ".join(err.split())


def test_convert_asks_for_trust_before_it_touches_the_file(run, folders):
    code, _, err = run("convert", "no-such-file.pt", "--out", "o.safetensors")
    assert code == 2
    assert "is a program" in err
    assert "--trust-torchscript" in err


def test_info_prints_names_and_values(run, indexed):
    code, out, _ = run("info", "e.safetensors")
    assert code == 0
    assert "thresholds.duplicate" in out
    assert "0.9999" in out
    code, _, err = run("info", "training")
    assert code == 1
    assert "neither a store, an index, a report nor a checkpoint" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_an_example_and_a_place_in_the_readme(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: deepssim-scan {command}" in " ".join(out.split())
    assert all(option.help for option in COMMANDS[command].params), command
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert f"deepssim-scan {command}" in readme


def test_decode_workers_do_not_load_torch():
    code = "import sys, deepssim_scan.cli, deepssim_scan.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_installed_program_runs(folders):
    command = [str(Path(sys.executable).parent / "deepssim-scan"), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("deepssim-scan 0.")
