"""Metrics against labelled pairs: what is read, the figures, and each metric by an oracle."""

import csv
import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pictures import TINY_CONVNEXT, drawn
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from deepssim_scan.cli import console
from deepssim_scan.cli.app import app
from deepssim_scan.encoder import checkpoint
from deepssim_scan.errors import InputError, InputMissing
from deepssim_scan.evaluation.agreement import figures, fitted, macro_f1, true_positives
from deepssim_scan.evaluation.labelled import LABELS, read_labelled, resolved
from deepssim_scan.evaluation.metrics import METRICS, metric_of
from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.standardise import standardise
from deepssim_scan.jobs.build_index import build_index
from deepssim_scan.jobs.config import IndexConfig
from deepssim_scan.jobs.evaluate import EvaluateConfig, evaluate
from deepssim_scan.reporting.matches import read_counts
from deepssim_scan.store.store import Store

RUN = RunContext("cpu", workers=0)
DIFFERENT, SIMILAR, DUPLICATE = range(3)


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def test_both_forms_of_labels_are_read(tmp_path):
    ours = write(
        tmp_path / "ours.csv",
        "label,synthetic,training,note\nduplicate,g/1.png,a.png,x\ndifferent,g/2.png,b.png,\n",
    )
    found = read_labelled(ours)
    assert (found.training, found.synthetic) == (("a.png", "b.png"), ("g/1.png", "g/2.png"))
    assert found.labels.tolist() == [DUPLICATE, DIFFERENT]
    theirs = write(
        tmp_path / "theirs.csv",
        "real_key,synth_key,label\nU1___training,U1___gen-0,1\nU2___training,U1___gen-1,2\n"
        "U2___training,U9___gen_0___x,0\n",
    )
    found = read_labelled(theirs)
    assert found.training == ("U1/training", "U2/training", "U2/training")
    assert found.synthetic == ("U1/gen-0", "U1/gen-1", "U9/gen_0___x")
    assert found.labels.tolist() == [DUPLICATE, SIMILAR, DIFFERENT]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training,synthetic\na,b\n", "wanted training, synthetic, label"),
        ("training,synthetic,label\na,b,duplicate\na,c,copy\n", "line 3: .*found .*'copy'"),
        ("training,synthetic,label\n,b,similar\n", "line 2"),
        ("training,synthetic,label\na,b\n", "line 2"),
        ("training,synthetic,label\n", "has no pairs"),
        ("", "has the columns none"),
    ],
)
def test_what_is_wrong_with_labels_is_told(tmp_path, text, told):
    with pytest.raises(InputError, match=told):
        read_labelled(write(tmp_path / "pairs.csv", text))


def test_labels_that_are_no_text_or_not_there_are_told(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"training,synthetic,label\n\xff,b,similar\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_labelled(tmp_path / "pairs.csv")
    with pytest.raises(InputMissing):
        read_labelled(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_labelled(tmp_path)


def test_a_pair_under_two_labels_is_told(tmp_path):
    """Either label counted."""
    rows = "training,synthetic,label\na,b,similar\nc,b,different\na,b,similar\n"
    assert len(read_labelled(write(tmp_path / "pairs.csv", rows)).labels) == 3
    with pytest.raises(InputError, match=r"line 5: labels the pair a, b duplicate, .* similar"):
        read_labelled(write(tmp_path / "pairs.csv", f"{rows}a,b,1\n"))


def test_names_are_resolved_with_or_without_suffix(tmp_path):
    there = ["a/1.png", "a/2.png", "b.jpg", "b.png"]
    assert resolved(["a/2", "a/1.png", "b.png"], there, tmp_path).tolist() == [1, 0, 3]
    for name, told in (("c", "no such image"), ("b", "2 images"), ("a/1.jpg", "no such image")):
        with pytest.raises(InputError, match=told):
            resolved([name], there, tmp_path)


def test_fitted_thresholds_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for count in (6, 20, 40):
        labels = rng.integers(0, 3, count)
        scores = labels + rng.normal(0, 0.8, count)
        bounds = fitted(labels, scores)
        values = np.unique(scores)
        cuts = [values[0] - 1, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
        best = max(
            f1_score(
                labels,
                (scores > low).astype(int) + (scores > high),
                labels=range(3),
                average="macro",
                zero_division=0,
            )
            for low, high in itertools.combinations_with_replacement(cuts, 2)
        )
        found = f1_score(
            labels, bounds.judge(scores), labels=range(3), average="macro", zero_division=0
        )
        assert found == pytest.approx(best)


def test_figures_of_a_perfect_and_of_a_useless_score():
    labels = np.repeat([DIFFERENT, SIMILAR, DUPLICATE], 20)
    groups = np.arange(60) % 10
    perfect = figures(labels, labels.astype(float), labels, groups)
    assert perfect["auc"] == perfect["macro_f1"] == perfect["silhouette"] == 1
    assert perfect["true_positives_at_0.001"] == 1
    assert perfect["macro_f1_95"] == [1, 1]
    assert perfect["confusion"] == np.diag([20, 20, 20]).tolist()
    scores = np.random.default_rng(0).random(60)
    useless = figures(labels, scores, np.zeros(60, np.int64), groups)
    low, high = useless["auc_95"]
    assert low < 0.5 < high
    assert useless["labels"]["duplicate"] == {"precision": 0, "recall": 0, "f1": 0}
    assert useless["macro_f1"] == pytest.approx(0.5 / 3)


def test_without_duplicates_nothing_is_said_of_them():
    labels = np.array([DIFFERENT, SIMILAR] * 5)
    found = figures(labels, np.arange(10.0), None, np.arange(10))
    assert found["auc"] is found["auc_95"] is found["true_positives_at_0.01"] is None
    assert "macro_f1" not in found


def test_true_positives_are_above_what_a_share_of_the_others_passes():
    labels = np.array([DIFFERENT] * 1000 + [DUPLICATE] * 10)
    scores = np.concatenate([np.arange(1000.0), np.full(5, 998.5), np.full(5, 999.5)])
    assert true_positives(labels, scores, 0.001) == 0.5
    assert true_positives(labels, scores, 0.01) == 1


def test_macro_f1_is_of_the_labels_that_there_are():
    labels = np.array([DIFFERENT, DUPLICATE])
    assert macro_f1(labels, labels) == 1


@pytest.fixture(scope="module")
def sides():
    """Grey images of 128 pixels: three training images, and three that were made of them."""
    training = [drawn(number, 128) for number in range(3)]
    synthetic = [training[0], np.roll(training[1], 3, 1), training[2][:, ::-1]]
    rule = METRICS["ssim"](None).standardisation
    return [
        [standardise(each.astype(np.float32), rule) for each in s] for s in (training, synthetic)
    ]


PAIRS = np.array(list(itertools.product(range(3), range(3))))


def test_raw_metrics_are_what_others_compute(sides):
    training, synthetic = sides
    ssim, correlation = (
        metric_of(name)[1].score(training, synthetic, PAIRS) for name in ("ssim", "correlation")
    )
    for (a, b), one, other in zip(PAIRS.tolist(), ssim, correlation, strict=True):
        left, right = training[a], synthetic[b]
        reach = float(np.ptp(left))
        assert one == pytest.approx(structural_similarity(left, right, data_range=reach), abs=1e-5)
        assert other == pytest.approx(np.corrcoef(left.ravel(), right.ravel())[0, 1], abs=1e-5)


@pytest.mark.parametrize("name", ["deepssim", "registered-ssim"])
def test_what_ignores_flips_and_shifts_has_each_source_first(sides, name):
    scores = metric_of(name)[1].score(*sides, PAIRS).reshape(3, 3)
    assert scores.argmax(0).tolist() == [0, 1, 2]
    assert scores.diagonal().min() > 0.8


def test_registered_ssim_undoes_gamma_and_is_that_of_whole_images(sides):
    training, _ = sides
    low, high = training[0].min(), training[0].max()
    brighter = ((training[0] - low) / (high - low)) ** 0.6
    changed = ((brighter - brighter.mean()) / brighter.std()).astype(np.float32)
    score = metric_of("registered-ssim")[1].score
    pairs = np.array([[0, 0], [0, 1]])
    same, undone = score(training[:1], [training[0], changed], pairs).tolist()
    assert same > 0.999
    plain = structural_similarity(training[0], changed, data_range=float(np.ptp(training[0])))
    assert undone > max(0.97, plain)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["sscd", "dar", "semdedup"])
def test_metrics_of_a_network_compare_its_features(sides, tmp_path, name):
    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images[:, :1], 8).flatten(1)

    torch.jit.script(Means()).save(tmp_path / "network.pt")
    title, metric = metric_of(f"{name}={tmp_path / 'network.pt'}")
    assert title == name
    scores = metric.score(*sides, PAIRS).reshape(3, 3)
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)
    assert np.abs(scores).max() <= 1 + 1e-6
    assert scores[0, 0] > scores[1:, 0].max()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cosine", "must be one of deepssim"),
        ("sscd", "needs the file"),
        ("ssim=x.onnx", "takes no file"),
        ("sscd=none.onnx", "no such file"),
    ],
)
def test_metrics_that_cannot_be_used_are_told(text, told):
    with pytest.raises((InputError, InputMissing), match=told):
        metric_of(text)


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
def test_a_file_that_is_no_network_is_told(tmp_path, suffix):
    path = write(tmp_path / f"network{suffix}", "no network")
    with pytest.raises(InputError, match="is no network"):
        metric_of(f"semdedup={path}")


class _Rgb(torch.nn.Conv2d):
    """Takes another number of channels."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)


class _Maps(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0]


class _NotFinite(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :8] * float("nan")


class _Two(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "told"),
    [
        (_Rgb, r"fails on float32 \(3, 1, 128, 128\) .*3 channels"),
        (_Two, "fails on float32"),
        (_Maps, r"gives \(3, 128, 128\) of 3 images"),
        (_NotFinite, r"gives \(3, 8\) of 3 images, where a row of finite features"),
    ],
)
def test_a_network_of_another_kind_is_told(sides, tmp_path, network, told):
    """One traceback or another was shown."""
    torch.jit.script(network()).save(tmp_path / "network.pt")
    _, metric = metric_of(f"dar={tmp_path / 'network.pt'}")
    with pytest.raises(InputError, match=told):
        metric.score(*sides, PAIRS)


def test_an_image_that_is_too_small_for_the_encoder_is_told(tmp_path, make_encoder):
    """PyTorch's traceback was shown. A query rejects such an image."""
    checkpoint.save(tmp_path / "e.safetensors", make_encoder(TINY_CONVNEXT), {})
    _, metric = metric_of(f"deepssim={tmp_path / 'e.safetensors'}")
    small, other = np.eye(3, dtype=np.float32), np.eye(64, dtype=np.float32)
    with pytest.raises(InputError, match=r"images of \d+ pixels a side, and one .*has 3"):
        metric.score([other], [small], np.array([[0, 0]]))


@pytest.fixture(scope="module")
def case(people, tmp_path_factory):
    """A training set with an index, six synthetic images, three of them copies, and labels."""
    root = tmp_path_factory.mktemp("evaluate")
    for number in range(40):
        name = f"s{number:02d}"
        shutil.copytree(people / "training" / name, root / "training" / name)
    build_index(root / "training", root / "index", IndexConfig(adapt="never"), RUN)
    rows = []
    (root / "generated").mkdir()
    for number in range(6):
        source = f"s{number:02d}/1.png" if number < 3 else f"s{number + 37}/1.png"
        image = Image.open(people / "training" / source)
        image.rotate(4).save(root / "generated" / f"{number}.png")
        label = "duplicate" if number < 3 else "different"
        rows.append([f"s{number:02d}/1.png", f"{number}.png", label])
        rows.append([f"s{number + 20:02d}/1.png", f"{number}.png", "similar"])
    with (root / "labelled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["training", "synthetic", "label"], *rows])
    return root


def evaluated(case, out, **asked):
    config = EvaluateConfig(index=case / "index", **asked)
    sides = case / "training", case / "generated"
    return evaluate(case / "labelled.csv", *sides, case / out, config, RUN)


def test_verdicts_are_those_of_a_query(case):
    found = evaluated(case, "verdicts", metrics=("verdicts",)).metrics["verdicts"]["own"]
    assert found["labels"]["duplicate"]["recall"] == 1
    assert found["labels"]["duplicate"]["precision"] == 1
    _, counts = read_counts(case / "verdicts" / "report")
    pairs = pq.read_table(case / "verdicts" / "pairs.parquet").to_pylist()
    flagged = {(match.training, match.synthetic) for match in counts.flagged}
    assert flagged == {
        (row["training"], row["synthetic"])
        for row in pairs
        if row["verdicts, label"] == "duplicate"
    }


def test_that_a_query_is_not_complete_is_told(case, tmp_path):
    class Told:
        texts: ClassVar[list[str]] = []

        def __call__(self, *_):
            pass

        def warn(self, text):
            self.texts.append(text)

    shutil.copytree(case / "generated", tmp_path / "generated")
    (tmp_path / "generated" / "damaged.png").write_bytes(b"none")
    config = EvaluateConfig(("verdicts",), index=case / "index")
    sides = case / "training", tmp_path / "generated"
    evaluate(case / "labelled.csv", *sides, tmp_path / "out", config, replace(RUN, progress=Told()))
    assert any("the query is not complete" in text for text in Told.texts)


def test_its_own_index_is_of_the_images_and_options_of_now(case, tmp_path, monkeypatch):
    """That of an earlier evaluation was queried, whatever had changed since."""
    never = partial(IndexConfig, adapt="never")
    monkeypatch.setattr("deepssim_scan.jobs.evaluate.IndexConfig", never)
    shutil.copytree(case / "training", tmp_path / "training")
    shutil.copytree(case / "index", tmp_path / "out" / "index")
    (tmp_path / "training" / "s39" / "2.png").unlink()
    config = EvaluateConfig(("verdicts",), ingest=IngestConfig(subject_regex=r"s(\d\d)/"))
    sides = tmp_path / "training", case / "generated"
    evaluate(case / "labelled.csv", *sides, tmp_path / "out", config, RUN)
    with Store.open(tmp_path / "out" / "index" / "store") as store:
        assert store.rows == 40 * 3 - 1
        assert {record.subject for record in store.embedded()} == {f"{n:02d}" for n in range(40)}


def test_an_index_of_other_images_is_told(case, tmp_path):
    shutil.copytree(case / "training", tmp_path / "training")
    (tmp_path / "training" / "s03").rename(tmp_path / "training" / "other")
    pairs = write(tmp_path / "p.csv", "training,synthetic,label\nother/1.png,0.png,similar\n")
    config = EvaluateConfig(("verdicts",), index=case / "index")
    with pytest.raises(InputError, match=r"holds 0 of the 1 .*other/1.png is not among them"):
        evaluate(pairs, tmp_path / "training", case / "generated", tmp_path / "out", config, RUN)


def test_thresholds_are_not_fitted_to_one_label(case, tmp_path):
    rows = "".join(f"s{number:02d}/1.png,{number % 6}.png,similar\n" for number in range(20))
    pairs = write(tmp_path / "pairs.csv", f"training,synthetic,label\n{rows}")
    config = EvaluateConfig(("ssim",), fit=True)
    with pytest.raises(InputError, match="10 pairs of 1 kinds of label"):
        evaluate(pairs, case / "training", case / "generated", tmp_path / "out", config, RUN)


def test_what_is_written_holds_all_figures(case):
    asked = "ssim", "correlation", "deepssim"
    result = evaluated(case, "out", metrics=asked, fit=True)
    told = json.loads((case / "out" / "evaluation.json").read_text())
    assert told["metrics"] == json.loads(json.dumps(dict(result.metrics)))
    assert set(told["metrics"]) == set(asked)
    assert told["labels"] == list(LABELS)
    pairs = pq.read_table(case / "out" / "pairs.parquet")
    tested = np.array(pairs["tested"].to_pylist())
    assert 0 < tested.sum() == told["metrics"]["ssim"]["fitted"]["pairs"] < len(tested)
    # No subject is both in the pairs that thresholds were fitted on, and in those tested.
    subject = np.array([name.partition("/")[0] for name in pairs["training"].to_pylist()])
    assert not set(subject[tested]) & set(subject[~tested])
    for name in asked:
        assert (case / "out" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (case / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert told["metrics"]["correlation"]["thresholds"]["own"] is None


def test_the_command_prints_a_table(case):
    sides = ["--training", case / "training", "--synthetic", case / "generated"]
    asked = ["evaluate", "--pairs", case / "labelled.csv", *sides, "--metric", "deepssim"]
    command = [*asked, "--metric", "ssim", "--out", case / "printed", "--workers", "1"]
    found = CliRunner().invoke(app, [str(each) for each in command])
    assert found.exit_code == 0, found.output
    assert "12 pairs: 3 different, 6 similar, 3 duplicate" in found.output
    assert "deepssim" in found.output


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_two_networks_of_one_metric_are_compared(case):
    """Each under its name and its file; both had one title, and the command crashed."""
    for name, side in (("one", 8), ("two", 16)):
        network = torch.nn.Sequential(torch.nn.AvgPool2d(side), torch.nn.Flatten())
        torch.jit.script(network).save(case / f"{name}.pt")
    asked = tuple(f"dar={case / name}.pt" for name in ("one", "two"))
    told = evaluated(case, "networks", metrics=(*asked, "ssim")).metrics
    assert tuple(told) == (*asked, "ssim")
    pairs = pq.read_table(case / "networks" / "pairs.parquet")
    assert pairs[asked[0]].to_pylist() != pairs[asked[1]].to_pylist()
    assert tuple(evaluated(case, "networks", metrics=asked[:1]).metrics) == ("dar",)


def test_no_figure_is_cut_on_a_narrow_terminal(case, monkeypatch):
    monkeypatch.setattr(console.output, "_width", 80)
    asked = ("--metric", "registered-ssim", "--metric", "ssim", "--fit", "--out", case / "narrow")
    sides = "--pairs", case / "labelled.csv", "--training", case / "training"
    sides += "--synthetic", case / "generated"
    result = CliRunner().invoke(app, [str(each) for each in ("evaluate", *sides, *asked)])
    assert result.exit_code == 0, result.output
    assert "\u2026" not in result.stdout


def test_an_image_of_the_pairs_that_is_not_there_is_told(case, tmp_path):
    pairs = write(tmp_path / "pairs.csv", "training,synthetic,label\ns00/1,9.png,similar\n")
    with pytest.raises(InputError, match="holds none of the 1 images"):
        evaluate(
            pairs,
            case / "training",
            case / "generated",
            tmp_path / "out",
            EvaluateConfig(("ssim",)),
            RUN,
        )
