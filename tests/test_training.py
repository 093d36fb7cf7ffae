"""Training on small images: it learns, resumes in the same bytes, and leaves out what it says."""

import csv
import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from pictures import TINY_CONVNEXT
from safetensors import safe_open
from torch import nn

from deepssim_scan import pools, training
from deepssim_scan.assess import assess, fit_thresholds, score_error
from deepssim_scan.checkpoint import Thresholds, load
from deepssim_scan.encoder import Encoder
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.listing import list_images
from deepssim_scan.pools import Images, Pool, load_images
from deepssim_scan.training import Step, TrainingConfig, train, train_on_folder

CONFIG = TrainingConfig(steps=10, batch=4, warmup=3, evaluate_every=4, held_out=0.3)
SIDE = 32


@pytest.fixture(scope="module")
def undisturbed(images, tiny, tmp_path_factory):
    """The checkpoint of a run of `CONFIG` from beginning to end, and what it reported."""
    path, steps = tmp_path_factory.mktemp("undisturbed") / "new" / "x", []
    train(images, path, CONFIG, tiny, report=steps.append)
    return path, steps


def _weights(path):
    return {name: value.clone() for name, value in load(path).encoder.state_dict().items()}


def _evaluated(path):
    """The steps in a run's history."""
    with path.with_name(f"{path.name}.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def _same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def _changed(pool, change):
    """A pool whose images are changed."""
    return Pool(change(pool.pixels), pool.by_name)


class Killed(BaseException):
    """What ends a run in these tests, as no handler of errors would."""


def killed_after(last):
    def report(step):
        if step.step == last:
            raise Killed

    return report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": -1}, "steps must be >= 0, found -1"),
        ({"evaluate_every": 0}, "evaluate_every must be >= 1"),
        ({"max_images": -5}, "max_images must be >= 1, found -5"),
        ({"pose_steps": -1}, "pose_steps must be >= 0, found -1"),
        ({"batch": 0}, "batch must be >= 1, found 0"),
        ({"batch": 6}, "multiple of 4 up to 64, found 6"),
        ({"batch": 68}, "multiple of 4 up to 64, found 68"),
        ({"held_out": 0.0}, "between 0 and 1, found 0"),
        ({"held_out": 1.0}, "between 0 and 1, found 1"),
        ({"held_out": math.nan}, "between 0 and 1, found nan"),
    ],
)
def test_impossible_options_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **changes)


# Training.


def test_training_learns_to_score_images_that_it_has_not_seen(images, tiny, tmp_path):
    config = replace(
        CONFIG, steps=80, batch=16, learning_rate=5e-3, evaluate_every=40, contrastive_weight=0.0
    )
    steps = []
    found = train(images, tmp_path / "x", config, tiny, report=steps.append)
    torch.manual_seed(config.seed)
    untrained = score_error(Encoder(tiny), images.validation, config.seed)
    error = score_error(found.encoder, images.validation, config.seed)
    assert error < 0.8 * untrained
    losses = [step.loss for step in steps]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert steps[-1].error == pytest.approx(error, abs=1e-6)
    assert [step.step for step in steps] == list(range(1, 81))
    assert [step.step for step in steps if step.error is not None] == [40, 80]


def test_the_checkpoint_says_what_it_was_trained_on(undisturbed, images, tiny):
    path, _ = undisturbed
    found = load(path)
    assert found.architecture == tiny
    assert found.training["config"] == asdict(CONFIG)
    assert found.training["training_images"] == 120 - 36 - 32
    assert found.training["validation_images"] == 36
    error = score_error(found.encoder, images.validation, CONFIG.seed)
    assert found.training["validation_error"] == pytest.approx(error, abs=1e-6)
    assert found.thresholds == fit_thresholds(found.encoder, images, CONFIG.seed)
    assert sorted(file.name for file in path.parent.iterdir()) == ["x", "x.csv"]


def test_no_steps_keep_the_weights_and_fit_the_thresholds(undisturbed, images, tiny, tmp_path):
    path, _ = undisturbed
    start = replace(load(path), thresholds=Thresholds())
    found = train(images, tmp_path / "x", replace(CONFIG, steps=0), start)
    assert _same(_weights(tmp_path / "x"), _weights(path))
    assert found.thresholds == fit_thresholds(start.encoder, images, CONFIG.seed)
    assert found.thresholds != start.thresholds
    with pytest.raises(InputError, match="steps must be >= 1 where training starts from random"):
        train(images, tmp_path / "y", replace(CONFIG, steps=0), tiny)


def test_training_goes_on_from_a_checkpoint(undisturbed, images, tmp_path):
    """The first step is taken from its weights; the file itself stays, and is named."""
    start = load(undisturbed[0])
    before = _weights(undisturbed[0])
    config = replace(CONFIG, steps=1, learning_rate=1e-9, weight_decay=0.0)
    found = train(images, tmp_path / "x", config, start)
    for name, weights in found.encoder.state_dict().items():
        torch.testing.assert_close(weights, before[name], rtol=0, atol=1e-7)
    assert found.training["started_from"] == start.fingerprint
    assert start.training["started_from"] is None
    assert _same(start.encoder.state_dict(), before)
    with pytest.raises(Killed):
        train(images, tmp_path / "y", CONFIG, start, report=killed_after(4))
    with pytest.raises(CheckpointError, match="other images or options"):
        train(images, tmp_path / "y", CONFIG, start.architecture, resume=True)


def test_training_on_a_folder_assesses_before_and_after(corpus, undisturbed, images, tmp_path):
    start = load(undisturbed[0])
    config = replace(CONFIG, steps=30, batch=16, learning_rate=3e-3)
    trained = train_on_folder(corpus, tmp_path / "x", config, start, workers=0)
    assert trained.held_out == 36
    assert trained.rejected == 0
    assert trained.before == assess(start.encoder, images.validation, config.seed)
    assert trained.after == assess(trained.checkpoint.encoder, images.validation, config.seed)
    assert trained.after.error < trained.before.error
    fresh = train_on_folder(corpus, tmp_path / "y", CONFIG, start.architecture, workers=0)
    assert fresh.before is None
    assert fresh.checkpoint.fingerprint == start.fingerprint


def test_poses_are_taught_first_where_that_is_asked_for(images, tiny, tmp_path):
    config = replace(CONFIG, steps=4, pose_steps=4)
    torch.manual_seed(config.seed)
    untrained = Encoder(tiny).state_dict()
    with pytest.raises(Killed):
        train(images, tmp_path / "x", config, tiny, report=killed_after(4))
    with safe_open(tmp_path / "x.state", framework="pt") as state:
        for name, weights in untrained.items():
            same = torch.equal(state.get_tensor(f"encoder.{name}"), weights)
            assert same != name.startswith("canonical.")
    steps = []
    resumed = train(images, tmp_path / "x", config, tiny, resume=True, report=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(each, 8) for each in range(5, 9)]
    with (tmp_path / "x.csv").open(newline="") as file:  # there is no score yet after step 4
        assert [row["error"] for row in csv.DictReader(file)] == ["", str(steps[-1].error)]
    assert train(images, tmp_path / "y", config, tiny).fingerprint == resumed.fingerprint
    assert any(
        not torch.equal(weights, untrained[name])
        for name, weights in resumed.encoder.state_dict().items()
        if name.startswith("feature_extractor.")
    )


def test_the_history_has_a_row_an_evaluation(undisturbed):
    path, steps = undisturbed
    with path.with_name("x.csv").open(newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == ["step", "steps", "loss", "error", "learning_rate", "seconds"]
    evaluated = [step for step in steps if step.error is not None]
    assert [step.step for step in evaluated] == [4, 8, 10]
    assert rows == [[str(getattr(step, name)) for name in Step.__slots__] for step in evaluated]


def test_validation_images_do_not_touch_the_weights(undisturbed, images, tiny, tmp_path):
    before = _weights(undisturbed[0])
    other = Images(images.training, _changed(images.validation, lambda x: x.flip(1) / 2), 0)
    train(other, tmp_path / "x", CONFIG, tiny)
    assert _same(before, _weights(tmp_path / "x"))
    changed = Images(_changed(images.training, lambda x: x.flip(1)), images.validation, 0)
    train(changed, tmp_path / "x", CONFIG, tiny)
    assert not _same(before, _weights(tmp_path / "x"))


def test_each_step_and_each_seed_draws_anew(images, tiny, tmp_path, monkeypatch):
    drawn, pairs = [], pools.pairs

    def recording(pixels, *rest):
        drawn.append(pixels)
        return pairs(pixels, *rest)

    monkeypatch.setattr(training, "pairs", recording)
    config = replace(CONFIG, steps=3)
    for seed in (0, 1):
        train(images, tmp_path / "x", replace(config, seed=seed), tiny)
    assert len(drawn) == 6
    assert len(torch.stack(drawn).unique(dim=0)) == 6


@pytest.mark.parametrize("last", [4, 7, 8])
def test_row_30_a_killed_run_resumes_to_the_same_bytes(last, undisturbed, images, tiny, tmp_path):
    path, steps = tmp_path / "x", []
    with pytest.raises(Killed):
        train(images, path, CONFIG, tiny, report=killed_after(last))
    assert not path.exists()
    torch.manual_seed(99)
    train(images, path, CONFIG, tiny, resume=True, report=steps.append)
    assert steps[0].step == last // 4 * 4 + 1
    assert _same(_weights(path), _weights(undisturbed[0]))
    assert path.read_bytes() == undisturbed[0].read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x", "x.csv"]
    assert _evaluated(path) == ["4", "8", "10"]


def test_row_30_a_run_killed_after_its_last_step_resumes(undisturbed, images, tiny, tmp_path):
    with pytest.raises(Killed):
        train(images, tmp_path / "x", CONFIG, tiny, report=killed_after(CONFIG.steps))
    train(images, tmp_path / "x", CONFIG, tiny, resume=True)
    assert (tmp_path / "x").read_bytes() == undisturbed[0].read_bytes()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_with_nothing_to_resume_starts_anew(resume, undisturbed, images, tiny, tmp_path):
    if not resume:
        with pytest.raises(Killed):
            train(images, tmp_path / "x", CONFIG, tiny, report=killed_after(5))
    steps = []
    train(images, tmp_path / "x", CONFIG, tiny, resume=resume, report=steps.append)
    assert len(steps) == CONFIG.steps
    assert (tmp_path / "x").read_bytes() == undisturbed[0].read_bytes()
    assert _evaluated(tmp_path / "x") == ["4", "8", "10"]


@pytest.mark.parametrize("change", ["options", "architecture", "images", "number of images"])
def test_row_34_another_runs_state_is_refused(change, corpus, images, tiny, tmp_path):
    with pytest.raises(Killed):
        train(images, tmp_path / "x", CONFIG, tiny, report=killed_after(4))
    before = (tmp_path / "x.state").read_bytes()
    config, architecture = CONFIG, tiny
    if change == "options":
        config = replace(CONFIG, learning_rate=2e-3)
    elif change == "architecture":
        architecture = replace(tiny, dimension=9)
    elif change == "images":
        images = Images(_changed(images.training, lambda x: x * 0.99), images.validation, 0)
    else:
        listing = list_images(corpus)
        fewer = replace(listing, files=listing.files[:-9])
        images = load_images(fewer, tiny, held_out=0.3, workers=0)
    with pytest.raises(CheckpointError, match="other images or options"):
        train(images, tmp_path / "x", config, architecture, resume=True)
    assert (tmp_path / "x.state").read_bytes() == before


def test_a_run_that_diverges_publishes_nothing(images, tiny, tmp_path):
    config = replace(CONFIG, learning_rate=1e30, warmup=1)
    with pytest.raises(InputError, match="training diverged at step"):
        train(images, tmp_path / "x", config, tiny)
    assert not (tmp_path / "x").exists()


# Its parts.


def _some_embeddings(drawn=4):
    """The embeddings of the views of a batch of `drawn` images."""
    return nn.functional.normalize(torch.randn(4 * drawn, 5))


def test_the_loss_of_scores_that_are_right_is_nought():
    embeddings = _some_embeddings()
    target = embeddings @ embeddings.T
    config = replace(CONFIG, contrastive_weight=0.0)
    assert training._loss(embeddings, target, config) == 0
    wrong = target.clone()
    wrong[2, 5] = wrong[5, 2] = 0.5 - target[2, 5]
    assert training._loss(embeddings, wrong, config) > 1e-4
    own = target - 0.5 * torch.eye(16)  # an image with itself says nothing
    assert training._loss(embeddings, own, config) == 0


def test_the_contrast_tells_the_second_view_from_strangers():
    embeddings = _some_embeddings()
    target = 2 * torch.rand(16, 16) - 1
    config = replace(CONFIG, temperature=0.7)
    with_it, without = (
        training._loss(embeddings, target, replace(config, contrastive_weight=weight))
        for weight in (0.3, 0.0)
    )
    scores, terms = (embeddings @ embeddings.T).double().numpy(), []
    for image in range(4):
        row = scores[12 + image, :12] / config.temperature
        told = [place for place in range(12) if place != image + 4]  # its perturbed version
        terms.append(np.log(np.exp(row[told]).sum()) - row[image])
    assert with_it - without == pytest.approx(0.3 * np.mean(terms), rel=1e-4)


def test_the_rate_rises_over_the_warm_up_and_falls_to_nought():
    rates = [training._schedule(step, 50, 10) for step in range(50)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1
    assert rates[30] == pytest.approx(0.5)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert [training._schedule(step, 3, 10) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_row_30_a_run_with_dropout_resumes_to_the_same_bytes(images, tmp_path):
    whole = train(images, tmp_path / "a", CONFIG, TINY_CONVNEXT)
    with pytest.raises(Killed):
        train(images, tmp_path / "b", CONFIG, TINY_CONVNEXT, report=killed_after(5))
    resumed = train(images, tmp_path / "b", CONFIG, TINY_CONVNEXT, resume=True)
    assert resumed.fingerprint == whole.fingerprint  # the batch norm's counts as well


def test_a_network_without_poses_is_not_taught_any(images, tmp_path):
    config, steps = replace(CONFIG, steps=2, pose_steps=7), []
    train(images, tmp_path / "a", config, TINY_CONVNEXT, report=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(1, 2), (2, 2)]


def test_a_state_that_was_cut_short_is_named(images, tiny, tmp_path):
    with pytest.raises(Killed):
        train(images, tmp_path / "x", CONFIG, tiny, report=killed_after(5))
    state = tmp_path / "x.state"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"x\.state: damaged .* Leave --resume away"):
        train(images, tmp_path / "x", CONFIG, tiny, resume=True)
