"""The commands as a user types them: output, messages and exit codes."""

import hashlib
import hmac
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import TINY, drawn
from PIL import Image
from typer.main import get_command

from deepssim_scan.calibration.assess import Assessment
from deepssim_scan.cli import found, main
from deepssim_scan.cli.app import app
from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.network import Encoder
from deepssim_scan.errors import Damaged, described
from deepssim_scan.jobs.demo import to_image
from deepssim_scan.jobs.train import Trained
from deepssim_scan.training.procedural import dead_leaves
from deepssim_scan.training.pseudo_subjects import mni152, slices

COMMANDS = get_command(app).commands
BUILD = ("build-index", "--training", "training", "--encoder", "e.safetensors", "--no-calibrate")
QUERY = ("query", "--synthetic", "synthetic", "--rule", "reference", "--duplicate", "0.9999")


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
    checkpoint.save(Path("e.safetensors"), Encoder(TINY), {})
    return tmp_path


@pytest.fixture
def indexed(run, folders):
    assert run(*BUILD)[0] == 0
    return folders


def test_the_two_commands_work_with_no_further_option(run, people, tmp_path, monkeypatch):
    """On twelve slices of pseudo-subjects: too few to be calibrated, which is said."""
    monkeypatch.chdir(tmp_path)
    for subject in range(12):
        Path(f"training/s{subject}").mkdir(parents=True)
        source = people / "training" / f"s{subject:02d}" / "1.png"
        shutil.copy(source, f"training/s{subject}/1.png")
    Path("synthetic").mkdir()
    shutil.copy(people / "training" / "s11" / "1.png", "synthetic/copy.png")
    shutil.copy(people / "training" / "s30" / "1.png", "synthetic/other.png")
    code, out, err = run("build-index", "--training", "training")
    assert code == 0
    assert "12 training images indexed in deepssim-index" in out
    assert "Images: 12 listed = 12 embedded + 0 rejected + 0 blank" in out
    assert "Not calibrated: " in err
    assert "pseudo-subjects, since the training set is too small" in out
    code, out, err = run("query", "--synthetic", "synthetic")
    assert code == 0
    assert "copy.png" in out
    assert "duplicate" in out
    assert "p-value < 0.001" in out
    assert "Copies: 1 of 2 images copy 1 of 12 training images. No subjects are told apart." in out
    assert "False alarms" not in out
    assert "Judged by the bundled calibration, of pseudo-subjects" in err
    assert "of 200 planted copies were found" in out
    assert "Report: deepssim-report/report.html" in out
    assert "Images: 2 listed = 2 embedded + 0 rejected + 0 blank" in out
    assert "synthetic images 2/2" in err
    assert sorted(path.name for path in Path("deepssim-report").iterdir()) == [
        "blank.csv",
        "distribution.png",
        "distribution.svg",
        "distributions.json",
        "evidence",
        "flagged.csv",
        "job.json",
        "matches.parquet",
        "partial.parquet",
        "rejected.csv",
        "report.html",
        "subjects.parquet",
        "summary.json",
        "synthetic",
        "volumes.parquet",
    ]


@pytest.mark.parametrize("name", ["history", "diff", "dossier", "review"])
def test_options_before_a_subcommand_of_audit_are_refused(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for option in (["--config", "prod.toml"], ["--json"], ["--rebuild"], ["--dry-run"]):
        code, out, err = run("audit", *option, name, *(["--reader", "A"] * (name == "review")))
        assert (code, out) == (2, "")
        told = f"as in: deepssim-scan audit {name} {option[0]}"
        assert told in " ".join(err.replace("│", " ").split())
    code, _, err = run("audit", "history", "--config", "prod.toml")
    assert (code, "prod.toml: there is no such file" in err) == (1, True)


@pytest.mark.parametrize(
    "options",
    [
        ["--dry-run", "--json"],
        ["--dry-run", "--rebuild"],
        ["--init", "--json"],
        ["--init", "--dry-run"],
    ],
)
def test_options_that_an_audit_would_ignore_are_refused(run, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("audit", *options)
    assert (code, out) == (2, "")
    assert "neither --json nor --rebuild" in " ".join(err.replace("│", " ").split())
    assert [*tmp_path.iterdir()] == []


def test_an_error_of_the_system_names_its_file_first():
    assert described(FileNotFoundError(2, "No such file", "a.txt")) == "a.txt: No such file."
    assert described(OSError(28, "No space left on device")) == "No space left on device."
    assert described(OSError("unknown")) == "unknown"
    assert described(Damaged("a: cut short. Build it again.")) == "a: cut short. Build it again."


def test_the_table_says_what_makes_a_duplicate(run, indexed):
    code, out, err = run(*QUERY)
    assert code == 0
    assert "score > 0.9999" in out
    assert "score > 0.6" in out
    assert "Judged by fixed scores: how often they are wrong is not known." in err
    code, _, err = run("query", "--synthetic", "synthetic", "--duplicate", "0.9")
    assert (code, "scores of the rule 'reference'" in " ".join(err.split())) == (2, True)
    code, _, err = run(*QUERY, "--similar", "1.5")
    assert (code, "similar (1.5) must be <= duplicate (0.9999)" in err) == (1, True)


def test_an_index_that_is_not_calibrated_says_how_it_is_judged_by(run, indexed):
    code, _, err = run("query", "--synthetic", "synthetic")
    assert code == 1
    assert "deepssim-index: the index is not calibrated (no calibration.json)." in err
    assert "Run `deepssim-scan calibrate --index deepssim-index`." in err
    code, _, err = run("calibrate")
    assert code == 1
    assert "a calibration needs 20 of more than one" in err
    assert not Path("deepssim-index/calibration.json").exists()


def test_calibrate_says_what_it_found(run, people, tmp_path):
    """On people held out, at the rate that they support."""
    index = shutil.copytree(people / "index", tmp_path / "index")
    before = (index / "calibration.json").read_bytes()
    volume = mni152()
    for subject in range(24):
        seed = torch.Generator().manual_seed(3_000_000_000 + subject)
        (pixels,) = slices(volume, 2, [0.5], 128, seed)
        path = tmp_path / "others" / f"p{subject}" / "1.png"
        path.parent.mkdir(parents=True)
        to_image(pixels).save(path)
    options = ("--index", index, "--holdout", tmp_path / "others", "--workers", 1)
    code, out, _ = run("calibrate", *options)
    assert code == 0
    assert "Non-members: 24 of 24 groups, hold-out images" in out
    assert "False-alarm rate: 0.04 (at most" in out
    assert "Planted copies found:" in out
    assert (index / "calibration.json").read_bytes() != before
    code, out, _ = run("info", index, "--json")
    said = json.loads(out)["calibration"]
    assert (said["subjects"], said["non_members"], said["planted"]) == ("hold-out", 24, 28)


@pytest.mark.parametrize(
    ("origin", "counted"),
    [
        ("known", "6 subjects"),
        ("runs", "6 runs of files"),
        ("hold-out", "6 subjects or runs of files"),
    ],
)
def test_a_query_says_what_non_members_are_counted_by(capsys, origin, counted):
    numbers = {"false_alarm": 0.01, "false_alarm_upper_95": 0.03, "expected_false_alarms": 0.1}
    people = {"images": 96, "subjects": 6, "from": origin}
    summary = {"calibration": {"non_members": people} | numbers, "counts": {"duplicate": 0}}
    found._show_calibration(summary)
    assert f"96 images of {counted})." in " ".join(capsys.readouterr().out.split())


def test_the_number_of_views_can_be_chosen(run, indexed):
    code, out, _ = run(*QUERY, "--tta-views", "1", "--json")
    assert (code, json.loads(out)["tta_views"]) == (0, 1)
    code, _, err = run(*QUERY, "--tta-views", "5")
    assert code == 2
    assert "--tta-views" in err


def test_the_number_of_candidates_can_be_chosen_and_is_not_that_of_matches(run, indexed):
    code, out, _ = run(*QUERY, "--candidates", "3", "--top-k", "2", "--json")
    summary = json.loads(out)
    assert (code, summary["candidates"], summary["top_k"]) == (0, 3, 2)
    assert summary["verification"]["registered"] == 2 * 3
    code, _, err = run(*QUERY, "--candidates", "0")
    assert (code, "--candidates" in err) == (2, True)


def test_pairs_are_not_verified_by_request_and_the_result_says_so(run, indexed):
    code, _, err = run(*QUERY, "--no-verify")
    assert code == 0
    assert "Not verified, as --no-verify asks for" in err
    assert "INCOMPLETE" not in err
    code, _, err = run(*QUERY, "--no-verify", "--training", "training")
    assert code == 2


def test_row_46_training_images_that_are_gone_make_a_query_incomplete(run, indexed):
    Path("training").rename("moved")
    code, out, err = run(*QUERY, "--fail-on-flagged")
    assert code == 4
    assert "Pairs not verified: 16" in err
    assert "Not looked at: synthetic images 0, training images 0, pairs 16." in err
    code, out, err = run(*QUERY, "--training", "moved")
    assert code == 0
    assert "Pairs looked at: 16" in out
    assert "INCOMPLETE" not in err


def test_row_45_files_are_left_out_on_purpose_and_counted(run, folders):
    Path("training/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    options = BUILD
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
    code, out, err = run(*QUERY)
    assert code == 0
    assert "Images: 11 listed = 9 embedded + 0 rejected + 2 blank" in out
    assert "Blank images, with nothing on them: 2; deepssim-report/blank.csv lists them." in err
    assert "INCOMPLETE" not in err


def test_the_subject_is_taken_from_the_path(run, indexed):
    assert run(*BUILD, "--subject-regex", "^[0-9]")[0] == 0
    code, out, _ = run(*QUERY)
    assert code == 0
    assert "Copies: 1 of 2 images copy 1 of 2 subjects." in out
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

    options = BUILD
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
    code, out, _ = run(*QUERY, "--json")
    assert code == 0
    written = json.loads(Path("deepssim-report/summary.json").read_text())
    assert json.loads(out) | {"checksum": written["checksum"]} == written


def test_row_27_fewer_training_images_than_matches_is_said(run, indexed):
    code, _, err = run(*QUERY, "--top-k", "50")
    assert code == 0
    assert "Only 12 matches an image: there are no more training images." in err


def test_exit_code_3_when_images_are_flagged_and_it_was_asked_for(run, indexed):
    assert run(*QUERY, "--fail-on-flagged")[0] == 3
    Path("synthetic/11.png").unlink()
    assert run(*QUERY, "--fail-on-flagged")[0] == 0


def test_exit_code_4_goes_before_3_and_says_incomplete(run, indexed):
    Path("synthetic/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    code, _, err = run(*QUERY, "--fail-on-flagged")
    assert code == 4
    assert "Not looked at: synthetic images 1, training images 0, pairs 0." in err
    assert "Rejected images: 1; deepssim-report/rejected.csv says why." in err


def test_a_manifest_a_volume_and_a_range_of_slices(run, indexed):
    volume = np.random.default_rng(0).normal(size=(9, 40, 40)).astype(np.float32)
    np.save("synthetic/v.npy", volume)
    Path("images.csv").write_text("path,subject\nv.npy,Jane Doe\n")
    options = ("--manifest", "images.csv", "--slices", "0.2:0.8")
    code, _, err = run(*QUERY, *options)
    assert (code, "Give one with --subject-key FILE" in err) == (1, True)
    Path("key").write_bytes(b"0123456789abcdef")
    code, out, _ = run(*QUERY, *options, "--subject-key", "key")
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
    code, _, err = run(*QUERY)
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
    assert "the key has 6 bytes, and at least 16 are needed" in " ".join(err.split())


def test_exit_code_1_is_one_line_and_no_traceback(run, folders):
    code, out, err = run(*QUERY)
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
    _, out, _ = run(*QUERY)
    assert r"[red]\x1b[31m.png" in out.replace("\n", "")
    assert "\x1b" not in out


def test_names_with_colons_are_no_emoji(run, folders):
    """A folder ":x:" was printed as a cross."""
    code, _, err = run("info", "seed:x:100")
    assert (code, err) == (1, "error: seed:x:100: nothing is there.\n")


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
    seen = checkpoint.load(Path("t.safetensors")).seen
    assert facts["training"]["seen"] == len(seen) == facts["training"]["training_images"]
    assert "step 2/2" in err
    assert run(*BUILD, "--encoder", "t.safetensors")[0] == 0
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
    held_out = 32 if init == "none" else 36  # of 72
    assert f"On the {held_out} images held out" in out
    (error,) = (line for line in out.splitlines() if "error of the score" in line)
    cells = [cell.strip() for cell in error.strip("│ ").split("│")]
    before, after = cells[1:]
    assert (before == "-") == (init == "none")
    assert 0 < float(after) < 1
    poses = checkpoint.load(Path("t.safetensors")).training["config"]["pose_steps"]
    assert poses == (1 if init == "none" else 0)


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        (Assessment(0.2, 0.5, 0.5), False),
        (Assessment(0.1, 0.6, 0.6), False),
        (Assessment(0.21, 0.6, 0.6), True),
        (Assessment(0.1, 0.49, 0.6), True),
        (Assessment(0.1, 0.6, 0.49), True),
    ],
)
def test_train_warns_of_every_row_that_is_worse(run, folders, monkeypatch, after, worse):
    """Of fewer copies whose source ranks first it did not."""
    before = Assessment(0.2, 0.5, 0.5)
    found = Trained(checkpoint.load(Path("e.safetensors")), before, after, 32, 0)
    monkeypatch.setattr("deepssim_scan.jobs.train.train", lambda *_: found)
    code, _, err = run("train", "--images", "training", "--out", "e.safetensors")
    assert code == 0
    assert ("Not better in every row" in err) == worse


def test_convert_asks_for_trust_before_it_touches_the_file(run, folders):
    code, _, err = run("convert", "no-such-file.pt", "--out", "o.safetensors")
    assert code == 2
    assert "is a program" in err
    assert "--trust-torchscript" in err


def test_info_prints_names_and_values(run, indexed):
    code, out, _ = run("info", "e.safetensors")
    assert code == 0
    assert "architecture.dimension" in out
    assert f" {TINY.dimension} " in out
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
    if titles[-1] == "Commands":  # those of a command that has some
        titles.pop()
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
    assert {"--candidates", "--tta-views", "--no-verify"} <= options("query")
    assert {"--rule", "--false-alarm", "--canaries", "--min-canary-recall"} <= options("query")
    assert {"--adapt", "--no-calibrate"} <= options("build-index")
    assert {"--index", "--training", "--holdout", "--candidates"} <= options("calibrate")
    for command in ("build-index", "query", "train"):
        shared = {"--exclude", "--manifest", "--subject-regex", "--subject-key"}
        assert shared <= options(command)
