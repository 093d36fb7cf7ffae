"""Training on small images: it learns, resumes in the same bytes, and leaves out what it says."""

import csv
import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import brute_force_mae, drawn_pairs
from pictures import TINY_CONVNEXT, in_memory
from safetensors import safe_open

from deepssim_scan.encoder.architecture import ARCHITECTURES
from deepssim_scan.encoder.checkpoint import load, save
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.imaging import devices
from deepssim_scan.imaging.image_set import ImageSet, pairs
from deepssim_scan.ingest.config import RunContext
from deepssim_scan.ingest.listing import list_images
from deepssim_scan.jobs import train as jobs
from deepssim_scan.jobs.config import TrainConfig
from deepssim_scan.jobs.train import train as train_on_folder
from deepssim_scan.training import objective
from deepssim_scan.training.config import TrainingConfig
from deepssim_scan.training.loop import schedule, train
from deepssim_scan.training.state import Step

CONFIG = TrainingConfig(steps=10, batch=4, warmup=3, evaluate_every=4, held_out=0.3)


@pytest.fixture(scope="module")
def undisturbed(dataset, tiny, tmp_path_factory):
    """The checkpoint of a run of `CONFIG` from beginning to end, and what it reported."""
    path, steps = tmp_path_factory.mktemp("undisturbed") / "new" / "x", []
    train(dataset, path, CONFIG, tiny, on_step=steps.append)
    return path, steps


def test_a_checkpoint_tells_all_files_that_it_was_trained_on(undisturbed, dataset, tmp_path):
    first = load(undisturbed[0])
    assert first.seen == dataset.seen
    assert len(first.seen) == len(dataset.training)
    others = replace(dataset, seen=frozenset({"another"}))
    assert train(others, tmp_path / "x", CONFIG, first).seen == dataset.seen | {"another"}


def _weights(path):
    return {name: value.clone() for name, value in load(path).encoder.state_dict().items()}


def _evaluated(path):
    """The steps in a run's history."""
    with path.with_name(f"{path.name}.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def _same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def _changed(images, change):
    """The same images, changed."""
    return ImageSet(change(images.pixels), images.by_name)


@pytest.fixture(scope="module")
def scikit_mae(dataset):
    """The validation error of an encoder, by scikit-image, from the windows that training takes."""
    batches = list(drawn_pairs(dataset.validation, CONFIG.seed, stride=3))
    return lambda encoder: brute_force_mae(lambda images: embed(encoder, images), batches)


class Killed(BaseException):
    """What ends a run in these tests, as no handler of errors would."""


def killed_after(last):
    def on_step(step):
        if step.step == last:
            raise Killed

    return on_step


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be >= 1, found 0"),
        ({"steps": -1, "pose_steps": 1}, "steps must be >= 0, found -1"),
        ({"evaluate_every": 0}, "evaluate_every must be >= 1"),
        ({"max_images": -5}, "max_images must be >= 1, found -5"),
        ({"pose_steps": -1}, "pose_steps must be >= 0, found -1"),
        ({"batch": 0}, "batch must be >= 1, found 0"),
        ({"batch": 6}, "multiple of 4 up to 64, found 6"),
        ({"batch": 68}, "multiple of 4 up to 64, found 68"),
        ({"seed": -1}, "seed must be >= 0, found -1"),
        ({"seed": 1 << 33}, "seed must be <= 4294967296, found 8589934592"),
        ({"warmup": -1}, "warmup must be >= 0, found -1"),
        ({"learning_rate": -1e-3}, "learning_rate must be >= 0, found -0.001"),
        ({"learning_rate": math.nan}, "learning_rate must be >= 0, found nan"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, found -1.0"),
        ({"gradient_norm": math.nan}, "gradient_norm must be >= 0, found nan"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0"),
        ({"held_out": 0.0}, "between 0 and 1, found 0"),
        ({"held_out": 1.0}, "between 0 and 1, found 1"),
        ({"held_out": math.nan}, "between 0 and 1, found nan"),
    ],
)
def test_impossible_options_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **changes)


def test_an_architecture_goes_with_random_weights_alone():
    """The bundled encoder was adapted, whatever had been asked for."""
    with pytest.raises(InputError, match="architecture 'base' goes with initial None"):
        TrainConfig(architecture="base")
    assert TrainConfig(None, "base").architecture == "base"


# Training.


def test_training_learns_to_score_images_that_it_has_not_seen(dataset, tiny, scikit_mae, tmp_path):
    config = replace(
        CONFIG, steps=80, batch=16, learning_rate=5e-3, evaluate_every=40, contrastive_weight=0.0
    )
    steps = []
    found = train(dataset, tmp_path / "x", config, tiny, on_step=steps.append)
    torch.manual_seed(config.seed)
    untrained = scikit_mae(Encoder(tiny))
    mae = scikit_mae(found.encoder)
    assert mae < 0.8 * untrained
    losses = [step.loss for step in steps]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    assert steps[-1].mae == pytest.approx(mae, abs=1e-4)
    assert [step.step for step in steps] == list(range(1, 81))
    assert [step.step for step in steps if step.mae is not None] == [40, 80]


def test_the_checkpoint_says_what_it_was_trained_on(undisturbed, dataset, tiny, scikit_mae):
    path, _ = undisturbed
    found = load(path)
    assert found.architecture == tiny
    assert found.training["config"] == asdict(CONFIG)
    assert found.training["training_images"] == 120 - 36 - 32
    assert found.training["validation_images"] == 36
    mae = scikit_mae(found.encoder)
    assert found.training["validation_error"] == pytest.approx(mae, abs=1e-4)
    assert sorted(file.name for file in path.parent.iterdir()) == ["x", "x.csv"]


def test_training_goes_on_from_a_checkpoint(undisturbed, dataset, tmp_path):
    """The first step is taken from its weights; the file itself stays, and is named."""
    start = load(undisturbed[0])
    before = _weights(undisturbed[0])
    config = replace(CONFIG, steps=1, learning_rate=1e-9, weight_decay=0.0)
    found = train(dataset, tmp_path / "x", config, start)
    for name, weights in found.encoder.state_dict().items():
        torch.testing.assert_close(weights, before[name], rtol=0, atol=1e-7)
    assert found.training["started_from"] == start.fingerprint
    assert start.training["started_from"] is None
    assert _same(start.encoder.state_dict(), before)
    with pytest.raises(Killed):
        train(dataset, tmp_path / "y", CONFIG, start, on_step=killed_after(4))
    with pytest.raises(CheckpointError, match="other images or options"):
        train(dataset, tmp_path / "y", CONFIG, start.architecture, resume=True)


def test_training_on_a_folder_assesses_before_and_after(
    corpus, undisturbed, tiny, scikit_mae, tmp_path, monkeypatch
):
    start = load(undisturbed[0])
    config = replace(CONFIG, steps=40, batch=16, learning_rate=5e-3, contrastive_weight=0.0)
    run = RunContext("cpu", workers=0)
    started = TrainConfig(undisturbed[0], training=config)
    trained = train_on_folder(corpus, tmp_path / "x", started, run)
    assert trained.held_out == 36
    assert trained.rejected == 0
    for encoder, found in (
        (start.encoder, trained.before),
        (trained.checkpoint.encoder, trained.after),
    ):
        assert found.mae == pytest.approx(scikit_mae(encoder), abs=1e-4)
    assert trained.after.mae < trained.before.mae
    assert trained.before.recall_at_1 > 0.25
    monkeypatch.setitem(ARCHITECTURES, "tiny", tiny)
    afresh = TrainConfig(None, "tiny", CONFIG)
    fresh = train_on_folder(corpus, tmp_path / "y", afresh, run)
    assert fresh.before is None
    assert fresh.checkpoint.fingerprint == start.fingerprint


def test_where_no_checkpoint_can_be_written_no_image_is_read(tmp_path):
    """It was told after all images had been read."""
    (tmp_path / "file").write_bytes(b"")
    for out, told in ((tmp_path, "is a folder"), (tmp_path / "file" / "x", "which is a file")):
        with pytest.raises(InputError, match=told):
            train_on_folder(tmp_path / "no such folder", out)


def test_the_device_that_trains_assesses_too(corpus, undisturbed, tmp_path, monkeypatch):
    """A GPU is played by the CPU; an encoder knows where it was brought to last."""

    def to(encoder, place):
        encoder.place = str(place)
        return encoder

    used, exact = [], jobs.assess

    def assess(encoder, *rest):
        used.append(encoder.place)
        return exact(encoder, *rest)

    monkeypatch.setattr(Encoder, "to", to)
    monkeypatch.setattr(jobs, "assess", assess)
    monkeypatch.setattr(devices, "pick_device", lambda name: "cuda")
    config = TrainConfig(undisturbed[0], training=replace(CONFIG, steps=1))
    trained = train_on_folder(corpus, tmp_path / "x", config, RunContext("cuda", workers=0))
    assert used == ["cuda", "cuda"]
    assert trained.checkpoint.encoder.place == "cpu"


def test_pose_parameters_are_taught_first_where_that_is_asked_for(dataset, tiny, tmp_path):
    config = replace(CONFIG, steps=4, pose_steps=4)
    torch.manual_seed(config.seed)
    untrained = Encoder(tiny).state_dict()
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", config, tiny, on_step=killed_after(4))
    with safe_open(tmp_path / "x.state", framework="pt") as state:
        for name, weights in untrained.items():
            same = torch.equal(state.get_tensor(f"encoder.{name}"), weights)
            assert same != name.startswith("canonical.")
    steps = []
    resumed = train(dataset, tmp_path / "x", config, tiny, resume=True, on_step=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(each, 8) for each in range(5, 9)]
    with (tmp_path / "x.csv").open(newline="") as file:  # there is no score yet after step 4
        assert [row["mae"] for row in csv.DictReader(file)] == ["", str(steps[-1].mae)]
    assert train(dataset, tmp_path / "y", config, tiny).fingerprint == resumed.fingerprint
    assert any(
        not torch.equal(weights, untrained[name])
        for name, weights in resumed.encoder.state_dict().items()
        if name.startswith("feature_extractor.")
    )


def test_the_history_has_a_row_an_evaluation(undisturbed):
    path, steps = undisturbed
    with path.with_name("x.csv").open(newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == ["step", "steps", "loss", "mae", "learning_rate", "seconds"]
    evaluated = [step for step in steps if step.mae is not None]
    assert [step.step for step in evaluated] == [4, 8, 10]
    assert rows == [[str(getattr(step, name)) for name in Step.__slots__] for step in evaluated]


def test_an_encoder_that_is_taught_comes_near_its_teacher(dataset, tiny, make_encoder, tmp_path):
    """Nearer than without one, and what the teacher was trained on counts as seen."""
    path, shape = tmp_path / "teacher", replace(tiny, widths=(16, 32))
    save(path, make_encoder(shape), {"seen": ["another"]})
    teacher, config = load(path), replace(CONFIG, steps=60, evaluate_every=60, learning_rate=3e-3)
    images = dataset.validation.some(36, torch.Generator())
    wanted = embed(teacher.encoder, images)
    near = {}
    for taught_by in (None, teacher):
        out = tmp_path / f"by {taught_by and 'teacher'}"
        found = train(dataset, out, config, tiny, teacher=taught_by)
        assert found.training["taught_by"] == (taught_by and teacher.fingerprint)
        assert ("another" in found.seen) == (taught_by is not None)
        near[out.name] = (embed(found.encoder, images) * wanted).sum(1).mean()
    alone, taught = near.values()
    assert taught > alone + 0.2
    with pytest.raises(Killed):
        train(dataset, tmp_path / "y", CONFIG, tiny, teacher=teacher, on_step=killed_after(4))
    with pytest.raises(CheckpointError, match="other images or options"):
        train(dataset, tmp_path / "y", CONFIG, tiny, resume=True)


def test_validation_images_do_not_touch_the_weights(undisturbed, dataset, tiny, tmp_path):
    before = _weights(undisturbed[0])
    other = replace(dataset, validation=_changed(dataset.validation, lambda x: x.flip(1) / 2))
    train(other, tmp_path / "x", CONFIG, tiny)
    assert _same(before, _weights(tmp_path / "x"))
    changed = replace(dataset, training=_changed(dataset.training, lambda x: x.flip(1)))
    train(changed, tmp_path / "x", CONFIG, tiny)
    assert not _same(before, _weights(tmp_path / "x"))


def test_each_step_and_each_seed_draws_anew(dataset, tiny, tmp_path, monkeypatch):
    drawn = []

    def recording(images, *rest):
        drawn.append(images)
        return pairs(images, *rest)

    monkeypatch.setattr(objective, "pairs", recording)
    config = replace(CONFIG, steps=3)
    for seed in (0, 1):
        train(dataset, tmp_path / "x", replace(config, seed=seed), tiny)
    assert len(drawn) == 6
    assert len(torch.stack(drawn).unique(dim=0)) == 6


@pytest.mark.parametrize("last", [4, 7, 8])
def test_row_30_a_killed_run_resumes_to_the_same_bytes(last, undisturbed, dataset, tiny, tmp_path):
    path, steps = tmp_path / "x", []
    with pytest.raises(Killed):
        train(dataset, path, CONFIG, tiny, on_step=killed_after(last))
    assert not path.exists()
    torch.manual_seed(99)
    train(dataset, path, CONFIG, tiny, resume=True, on_step=steps.append)
    assert steps[0].step == last // 4 * 4 + 1
    assert _same(_weights(path), _weights(undisturbed[0]))
    assert path.read_bytes() == undisturbed[0].read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x", "x.csv"]
    assert _evaluated(path) == ["4", "8", "10"]


def test_row_30_a_run_killed_after_its_last_step_resumes(undisturbed, dataset, tiny, tmp_path):
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(CONFIG.steps))
    train(dataset, tmp_path / "x", CONFIG, tiny, resume=True)
    assert (tmp_path / "x").read_bytes() == undisturbed[0].read_bytes()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_with_nothing_to_resume_starts_anew(resume, undisturbed, dataset, tiny, tmp_path):
    if not resume:
        with pytest.raises(Killed):
            train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(5))
    steps = []
    train(dataset, tmp_path / "x", CONFIG, tiny, resume=resume, on_step=steps.append)
    assert len(steps) == CONFIG.steps
    assert (tmp_path / "x").read_bytes() == undisturbed[0].read_bytes()
    assert _evaluated(tmp_path / "x") == ["4", "8", "10"]


def test_a_file_that_is_no_encoder_is_not_replaced(undisturbed, dataset, tiny, tmp_path):
    for content in (b"an image, say", undisturbed[0].read_bytes()[:-1]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match="x: is a file, and no whole encoder: it is not repl"):
            train(dataset, tmp_path / "x", CONFIG, tiny)
        assert (tmp_path / "x").read_bytes() == content
    for content in (b"", undisturbed[0].read_bytes()):
        (tmp_path / "x").write_bytes(content)
        train(dataset, tmp_path / "x", CONFIG, tiny)
        assert load(tmp_path / "x").architecture == tiny


@pytest.mark.parametrize("change", ["options", "architecture", "images", "number of images"])
def test_row_34_another_runs_state_is_refused(change, corpus, dataset, tiny, tmp_path):
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(4))
    before = (tmp_path / "x.state").read_bytes()
    config, architecture = CONFIG, tiny
    if change == "options":
        config = replace(CONFIG, learning_rate=2e-3)
    elif change == "architecture":
        architecture = replace(tiny, dimension=9)
    elif change == "images":
        dataset = replace(dataset, training=_changed(dataset.training, lambda x: x * 0.99))
    else:
        listing = list_images(corpus)
        fewer = replace(listing, files=listing.files[:-9])
        dataset = in_memory(fewer, tiny, held_out=0.3)
    with pytest.raises(CheckpointError, match="other images or options"):
        train(dataset, tmp_path / "x", config, architecture, resume=True)
    assert (tmp_path / "x.state").read_bytes() == before


def test_a_run_that_diverges_publishes_nothing(dataset, tiny, tmp_path):
    config = replace(CONFIG, learning_rate=1e30, warmup=1)
    with pytest.raises(InputError, match="training diverged at step"):
        train(dataset, tmp_path / "x", config, tiny)
    assert not (tmp_path / "x").exists()


def test_a_run_that_diverges_at_its_last_step_publishes_nothing(
    undisturbed, dataset, tiny, tmp_path
):
    """No loss tells of that step. What was there was replaced by an encoder of no numbers."""
    (tmp_path / "x").write_bytes(before := undisturbed[0].read_bytes())
    for rate in (math.inf, 1e30):
        config = replace(CONFIG, steps=1, learning_rate=rate, warmup=1)
        with pytest.raises(InputError, match="training diverged at its last step"):
            train(dataset, tmp_path / "x", config, tiny)
        assert (tmp_path / "x").read_bytes() == before


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    rates = [schedule(step, 50, 10) for step in range(50)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1
    assert rates[30] == pytest.approx(0.5)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    assert [schedule(step, 3, 10) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_row_30_a_run_with_dropout_resumes_to_the_same_bytes(dataset, tmp_path):
    whole = train(dataset, tmp_path / "a", CONFIG, TINY_CONVNEXT)
    with pytest.raises(Killed):
        train(dataset, tmp_path / "b", CONFIG, TINY_CONVNEXT, on_step=killed_after(5))
    resumed = train(dataset, tmp_path / "b", CONFIG, TINY_CONVNEXT, resume=True)
    assert resumed.fingerprint == whole.fingerprint  # the batch norm's counts as well


def test_a_network_without_a_canonicaliser_is_not_taught_pose_parameters(dataset, tmp_path):
    config, steps = replace(CONFIG, steps=2, pose_steps=7), []
    train(dataset, tmp_path / "a", config, TINY_CONVNEXT, on_step=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(1, 2), (2, 2)]


def test_a_state_that_was_cut_short_is_named(dataset, tiny, tmp_path):
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(5))
    state = tmp_path / "x.state"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"x\.state: damaged .* Leave --resume away"):
        train(dataset, tmp_path / "x", CONFIG, tiny, resume=True)


def test_a_state_with_a_flipped_bit_is_named(dataset, tiny, tmp_path):
    """Training went on from it, to other weights."""
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(5))
    state = tmp_path / "x.state"
    data = bytearray(state.read_bytes())
    for place in (len(data) // 2, len(data) - 1):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        state.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"x\.state: damaged .* Leave --resume away"):
            train(dataset, tmp_path / "x", CONFIG, tiny, resume=True)


@pytest.mark.parametrize("rest", [None, b"", b"step,steps\n\n1,10\nx,,,,,\n"])
def test_a_run_resumes_without_its_history(rest, undisturbed, dataset, tiny, tmp_path):
    """A traceback was shown."""
    with pytest.raises(Killed):
        train(dataset, tmp_path / "x", CONFIG, tiny, on_step=killed_after(5))
    history = tmp_path / "x.csv"
    history.unlink()
    if rest is not None:
        history.write_bytes(rest)
    train(dataset, tmp_path / "x", CONFIG, tiny, resume=True)
    assert (tmp_path / "x").read_bytes() == undisturbed[0].read_bytes()
    assert _evaluated(tmp_path / "x") == ["8", "10"]
