"""The commands as a user types them: output, messages and exit codes."""

import hashlib
import hmac
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import TINY, drawn
from PIL import Image
from typer.main import get_command

from deepssim_scan.cli import main
from deepssim_scan.cli.app import app
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.encoder.thresholds import Thresholds
from deepssim_scan.training.procedural import dead_leaves

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
    assert "Images: 12 listed = 12 embedded + 0 rejected + 0 blank" in out
    code, out, err = run("query", "--synthetic", "synthetic")
    assert code == 0
    assert "11.png" in out
    assert "duplicate" in out
    assert "Report: deepssim-report" in out
    assert "Images: 2 listed = 2 embedded + 0 rejected + 0 blank" in out
    assert "synthetic images 2/2" in err
    assert sorted(path.name for path in Path("deepssim-report").iterdir()) == [
        "blank.csv",
        "evidence",
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
    assert "SSIM > 0.9, or score > 0.9999 and SSIM > 0.8" in printed("--high-ssim", "0.9")
    assert "SSIM >" not in printed("--no-verify")
    code, _, err = run("query", "--synthetic", "synthetic", "--high-ssim", "0.7")
    assert code == 1
    assert "found ssim 0.8, high_ssim 0.7" in err


def test_the_number_of_views_can_be_chosen(run, indexed):
    code, out, _ = run("query", "--synthetic", "synthetic", "--tta-views", "1", "--json")
    assert (code, json.loads(out)["tta_views"]) == (0, 1)
    code, _, err = run("query", "--synthetic", "synthetic", "--tta-views", "6")
    assert code == 2
    assert "--tta-views" in err


def test_the_number_of_candidates_can_be_chosen_and_is_not_that_of_matches(run, indexed):
    options = ("--synthetic", "synthetic", "--candidates", "3", "--top-k", "2", "--json")
    code, out, _ = run("query", *options)
    summary = json.loads(out)
    assert (code, summary["candidates"], summary["top_k"]) == (0, 3, 2)
    assert summary["verification"]["registered"] == 2 * 3
    code, _, err = run("query", "--synthetic", "synthetic", "--candidates", "0")
    assert (code, "--candidates" in err) == (2, True)


def test_pairs_are_not_verified_by_request_and_the_result_says_so(run, indexed):
    code, _, err = run("query", "--synthetic", "synthetic", "--no-verify")
    assert code == 0
    assert "Not verified, as --no-verify asks for" in err
    assert "INCOMPLETE" not in err
    code, _, err = run("query", "--synthetic", "synthetic", "--no-verify", "--training", "training")
    assert code == 2


def test_row_46_training_images_that_are_gone_make_a_query_incomplete(run, indexed):
    Path("training").rename("moved")
    code, out, err = run("query", "--synthetic", "synthetic", "--fail-on-flagged")
    assert code == 4
    assert "Pairs not verified: 10" in err
    assert "Not looked at: synthetic images 0, training images 0, pairs 10." in err
    code, out, err = run("query", "--synthetic", "synthetic", "--training", "moved")
    assert code == 0
    assert "Pairs registered: 10" in out
    assert "INCOMPLETE" not in err


def test_row_45_files_are_left_out_on_purpose_and_counted(run, folders):
    Path("training/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    options = ("build-index", "--training", "training", "--encoder", "e.safetensors")
    code, out, err = run(*options)
    assert code == 4
    assert "Rejected images: 1; deepssim-index/rejected.csv says why." in err
    assert "INCOMPLETE" in err
    code, out, err = run(*options, "--exclude", "broken.*", "--exclude", "00.png")
    assert code == 0
    assert "Excluded files (--exclude): 2." in err
    assert "Images: 11 listed = 11 embedded + 0 rejected + 0 blank" in out
    assert "INCOMPLETE" not in err


def test_row_43_blank_slices_are_counted_and_make_nothing_incomplete(run, indexed):
    volume = np.random.default_rng(0).normal(size=(9, 40, 40)).astype(np.float32)
    volume[:2] = 0
    np.save("synthetic/v.npy", volume)
    code, out, err = run("query", "--synthetic", "synthetic")
    assert code == 0
    assert "Images: 11 listed = 9 embedded + 0 rejected + 2 blank" in out
    assert "Blank images, with nothing on them: 2; deepssim-report/blank.csv lists them." in err
    assert "INCOMPLETE" not in err


def test_the_subject_is_taken_from_the_path(run, indexed):
    options = ("--training", "training", "--encoder", "e.safetensors", "--subject-regex", "^[0-9]")
    assert run("build-index", *options)[0] == 0
    code, out, _ = run("query", "--synthetic", "synthetic")
    assert code == 0
    assert "Subjects of whom an image is copied: 1 of 2" in out
    matches = pq.read_table("deepssim-report/matches.parquet")
    names, subjects = matches["training"].to_pylist(), matches["subject"].to_pylist()
    assert subjects == [name[0] for name in names]
    for command in (("build-index", "--training"), ("query", "--synthetic")):
        code, _, err = run(*command, "training", "--subject-regex", "(")
        assert (code, "subject_regex" in err) == (2, True)
    code, *_ = run("train", "--images", "training", "--out", "t", "--subject-regex", "(a)(b)")
    assert code == 2


def test_row_51_an_interrupted_run_of_other_options_asks_for_restart(run, folders, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    options = ("build-index", "--training", "training", "--encoder", "e.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("deepssim_scan.jobs.build_index.write_left_out", interrupted)
        assert run(*options)[0] != 0
    left = sorted(Path(".deepssim-index.partial").rglob("*"))
    code, _, err = run(*options, "--exclude", "00.png")
    assert code == 1
    assert "exclude was" in err
    assert "--restart" in err
    assert sorted(Path(".deepssim-index.partial").rglob("*")) == left
    code, out, _ = run(*options, "--exclude", "00.png", "--restart")
    assert code == 0
    assert "11 training images indexed" in out


def test_a_gpu_that_is_not_there_is_an_error_of_usage(run, folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (
        ("build-index", "--training", "training"),
        ("query", "--synthetic", "synthetic"),
        ("train", "--images", "training", "--out", "t.safetensors"),
        ("demo",),
    ):
        code, _, err = run(*command, "--device", "cuda")
        assert code == 2, command
        assert "cuda was asked for" in " ".join(err.split())


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
    assert "Not looked at: synthetic images 1, training images 0, pairs 0." in err
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
    assert "Images: 5 listed = 5 embedded + 0 rejected + 0 blank" in out
    assert "v.npy#axis=0,slice=2" in out.replace("\n", "")
    catalog = Path("deepssim-report/synthetic/catalog.sqlite").read_bytes()
    hashed = hmac.new(b"0123456789abcdef", b"Jane Doe", hashlib.sha256).hexdigest()
    assert (b"Jane" in catalog, hashed.encode() in catalog) == (False, True)


def test_check_says_what_is_damaged_and_repairs_it(run, indexed):
    code, out, _ = run("check", "deepssim-index")
    assert (code, "index is intact (12 listed, 12 rows, 0 rejected, 0 blank)" in out) == (0, True)
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
    assert "the subject key has 6 bytes, and at least 16 are needed" in " ".join(err.split())


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
    options = (*options, "--init", "e.safetensors", "--resume", "--json")
    code, out, err = run("train", *options, "--out", "t.safetensors")
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
    code, _, err = run("train", *options, "--out", "t.safetensors", "--init", "e.safetensors")
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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_in_a_panel_and_help_comes_last(run, command):
    panels = {"Input", "Output", "Verdict", "Training", "Machine"}
    options = [each for each in COMMANDS[command].params if each.param_type_name == "option"]
    assert {each.rich_help_panel for each in options} <= panels
    _, out, _ = run(command, "--help")
    titles = [line.split()[1] for line in out.splitlines() if line.startswith("╭")]
    assert titles[-1] == "Help"
    assert set(titles) <= panels | {"Arguments", "Help"}
    assert titles.index("Output") < len(titles) - 1


def test_each_command_takes_what_its_place_in_the_flow_needs():
    def options(command):
        return {name for each in COMMANDS[command].params for name in each.opts}

    kept = {"--index", "--include", "--manifest", "--json"}
    assert kept | {"--training", "--encoder", "--restart"} <= options("build-index")
    named = {"--synthetic", "--training", "--report", "--top-k", "--fail-on-flagged"}
    assert kept | named <= options("query")
    assert {"--candidates", "--tta-views", "--high-ssim", "--no-verify"} <= options("query")
    for command in ("build-index", "query", "train"):
        shared = {"--exclude", "--manifest", "--subject-regex", "--subject-key"}
        assert shared <= options(command)
