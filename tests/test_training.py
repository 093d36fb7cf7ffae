"""Training on small images: it learns, resumes in the same bytes, and leaves out what it says."""

import csv
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import drawn
from PIL import Image
from torch import nn

from deepssim_scan import training
from deepssim_scan.augment import augment, other_subject, perturb
from deepssim_scan.checkpoint import Thresholds, load
from deepssim_scan.encoder import Architecture, Encoder
from deepssim_scan.errors import CheckpointError, InputError
from deepssim_scan.images import decode_images
from deepssim_scan.listing import list_images
from deepssim_scan.procedural import FAMILIES
from deepssim_scan.ssim import image_range, ssim_matrix
from deepssim_scan.standardise import Standardisation
from deepssim_scan.training import (
    Images,
    Pool,
    Step,
    TrainingConfig,
    fit_thresholds,
    load_images,
    score_error,
    train,
)

CONFIG = TrainingConfig(steps=10, batch=4, warmup=3, evaluate_every=4, held_out=0.3)
SIDE = 32


def write(folder, count, *, per_folder, side=SIDE):
    """Write 8-bit images of all procedural families, `per_folder` of them in each folder."""
    families = list(FAMILIES.values())
    for number in range(count):
        pixels = drawn(number, side, families[number % len(families)])
        path = folder / f"{number // per_folder:03d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 images in four folders."""
    return write(tmp_path_factory.mktemp("images"), 120, per_folder=30)


@pytest.fixture(scope="module")
def images(folder, tiny):
    return load_images(list_images(folder), tiny, CONFIG, workers=0)


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


# Images.


def test_a_folder_is_split_without_overlap(folder, tiny):
    seen = []
    listing = list_images(folder)
    report = lambda *each: seen.append(each[-2:])  # noqa: E731
    images = load_images(listing, tiny, CONFIG, workers=0, report=report)
    training, validation = images.training.pixels, images.validation.pixels
    assert training.dtype == validation.dtype == torch.float16
    assert training.shape == (84, SIDE, SIDE)
    assert validation.shape == (36, SIDE, SIDE)
    assert images.rejected == 0
    assert len(torch.cat([training, validation]).float().unique(dim=0)) == 120
    assert seen == [(number, 120) for number in range(1, 121)]


def test_at_least_32_images_are_held_out_and_the_seed_chooses_them(folder, tiny):
    few = replace(CONFIG, held_out=0.01)
    first, again, other = (
        load_images(list_images(folder), tiny, config, workers=0).validation.pixels
        for config in (few, few, replace(few, seed=1))
    )
    assert len(first) == 32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_from_20_folders_on_folders_are_held_out_whole():
    paths = [f"site/{number // 7:03d}/{number}.png" for number in range(20 * 7)]
    held = training._held_out(paths, CONFIG)
    folders = [str(PurePosixPath(path).parent) for path in paths]
    inside = {name for name, each in zip(folders, held, strict=True) if each}
    outside = {name for name, each in zip(folders, held, strict=True) if not each}
    assert not inside & outside
    assert 42 <= held.sum() < 42 + 7
    few = [path for path in paths if path < "site/019"]  # 19 folders
    held = training._held_out(few, CONFIG)
    assert held.sum() == round(0.3 * len(few))
    assert len({name for name, each in zip(folders, held, strict=False) if each}) > 12


def test_folders_are_held_out_whole_on_disk_too(tmp_path, tiny):
    write(tmp_path, 80, per_folder=4)  # 20 folders
    listing = list_images(tmp_path)
    validation = load_images(listing, tiny, CONFIG, workers=0).validation.pixels
    assert len(validation) == 32
    decoded = decode_images(listing, tiny.standardisation, workers=0)
    everything = torch.stack([torch.from_numpy(each.pixels).half() for (each,) in decoded])
    held = (everything[:, None] == validation).flatten(2).all(2).any(1)
    assert held.unflatten(0, (20, 4)).float().mean(1).unique().tolist() == [0, 1]


def test_no_more_than_max_images_are_read(folder, tiny):
    config = replace(CONFIG, max_images=70)
    images = load_images(list_images(folder), tiny, config, workers=0)
    assert len(images.training.pixels) + len(images.validation.pixels) == 70
    other = load_images(list_images(folder), tiny, replace(config, seed=1), workers=0)
    assert not torch.equal(images.training.pixels[:30], other.training.pixels[:30])


def test_rejected_images_are_counted(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    (tmp_path / "000" / "0003.png").write_bytes(b"no image")
    images = load_images(list_images(tmp_path), tiny, CONFIG, workers=0)
    assert images.rejected == 1
    assert len(images.training.pixels) + len(images.validation.pixels) == 69


def test_fewer_than_64_images_are_refused(tmp_path, tiny):
    write(tmp_path, 64, per_folder=64)
    load_images(list_images(tmp_path), tiny, CONFIG, workers=0)
    (tmp_path / "000" / "0003.png").unlink()
    with pytest.raises(InputError, match="63 readable images; training needs 64"):
        load_images(list_images(tmp_path), tiny, CONFIG, workers=0)


def test_several_sizes_are_refused_where_they_stay(tmp_path, tiny):
    write(tmp_path / "a", 60, per_folder=60)
    write(tmp_path / "b", 10, per_folder=10, side=40)
    load_images(list_images(tmp_path), tiny, CONFIG, workers=0)
    as_is = replace(tiny, head="pool", standardisation=Standardisation(size=None))
    with pytest.raises(InputError, match="images of several sizes"):
        load_images(list_images(tmp_path), as_is, CONFIG, workers=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be >= 1, found 0"),
        ({"evaluate_every": 0}, "evaluate_every must be >= 1"),
        ({"max_images": -5}, "max_images must be >= 1, found -5"),
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
        CONFIG, steps=50, batch=16, learning_rate=5e-3, evaluate_every=25, contrastive_weight=0.0
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
    assert [step.step for step in steps] == list(range(1, 51))
    assert [step.step for step in steps if step.error is not None] == [25, 50]


def test_the_checkpoint_says_what_it_was_trained_on(undisturbed, images, tiny):
    path, _ = undisturbed
    found = load(path)
    assert found.architecture == tiny
    assert found.training["config"] == asdict(CONFIG)
    assert found.training["training_images"] == 84
    assert found.training["validation_images"] == 36
    error = score_error(found.encoder, images.validation, CONFIG.seed)
    assert found.training["validation_error"] == pytest.approx(error, abs=1e-6)
    assert found.thresholds == fit_thresholds(found.encoder, images, CONFIG.seed)
    assert sorted(file.name for file in path.parent.iterdir()) == ["x", "x.csv"]


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
    drawn, batch = [], training._batch

    def recording(pixels, *rest):
        drawn.append(pixels)
        return batch(pixels, *rest)

    monkeypatch.setattr(training, "_batch", recording)
    config = replace(CONFIG, steps=3)
    for seed in (0, 1):
        train(images, tmp_path / "x", replace(config, seed=seed), tiny)
    steps = [*drawn[:3], *drawn[11:14]]  # eight batches are evaluated after three steps
    assert len(drawn) == 22
    assert len(torch.stack(steps).unique(dim=0)) == 6


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
def test_row_34_another_runs_state_is_refused(change, folder, images, tiny, tmp_path):
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
        listing = list_images(folder)
        images = load_images(replace(listing, files=listing.files[:-9]), tiny, CONFIG, workers=0)
    with pytest.raises(CheckpointError, match="other images or options"):
        train(images, tmp_path / "x", config, architecture, resume=True)
    assert (tmp_path / "x.state").read_bytes() == before


def test_a_run_that_diverges_publishes_nothing(images, tiny, tmp_path):
    config = replace(CONFIG, learning_rate=1e30, warmup=1)
    with pytest.raises(InputError, match="training diverged at step"):
        train(images, tmp_path / "x", config, tiny)
    assert not (tmp_path / "x").exists()


def test_an_evaluation_repeats_itself_and_a_blind_encoder_errs(images, tiny, make_encoder):
    encoder = make_encoder(tiny)
    first = score_error(encoder, images.validation, 3)
    assert score_error(encoder, images.validation, 3) == first
    assert score_error(encoder, images.validation, 4) != first
    # It says 1 of every pair; ten even bins of SSIM would make its error one half.
    assert 0.3 < score_error(_Blind(), images.validation, 3) < 0.7


# Thresholds.


class _Blind(nn.Module):
    """Gives every image one embedding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return nn.functional.normalize(images.new_ones(len(images), 3))


class _Pixels(_Blind):
    """Gives an image its own pixels: near for what is near, whatever augmentation does to it."""

    def forward(self, images):
        return nn.functional.normalize(images.flatten(1))


@pytest.mark.parametrize("seed", range(2))
def test_fitted_thresholds_are_in_order(seed, images, tiny, make_encoder):
    for encoder in (make_encoder(tiny, seed), _Blind(), _Pixels()):
        found = fit_thresholds(encoder, images, seed)
        assert -1 <= found.similar <= found.duplicate < 1
        assert found == fit_thresholds(encoder, images, seed)


def test_an_encoder_that_sees_nothing_is_given_a_threshold_next_to_one(images):
    assert fit_thresholds(_Blind(), images, 0) == Thresholds(0.999, 0.999)


def test_all_but_a_few_strangers_stay_under_the_threshold(images):
    found = fit_thresholds(_Pixels(), images, 0)
    pixels = images.training.pixels.float()
    known = nn.functional.normalize(pixels.flatten(1))
    unseen = images.validation.pixels.float()
    deformed = other_subject(pixels, torch.Generator().manual_seed(77))
    for strangers in (unseen, deformed):
        best = (nn.functional.normalize(strangers.flatten(1)) @ known.T).amax(1)
        assert (best > found.duplicate).float().mean() < 0.03
    assert found.duplicate < 0.999


# Its parts.


def test_a_batch_has_the_ssim_of_what_its_views_were_made_of(images):
    drawn = images.training.pixels[:8].float()
    views, target = training._batch(drawn, torch.Generator().manual_seed(5), augment)
    generator = torch.Generator().manual_seed(5)
    clean = torch.cat([drawn, perturb(drawn, generator), other_subject(drawn, generator)])
    exact = ssim_matrix(clean, clean, image_range(clean))
    exact = (exact + exact.T) / 2
    source = torch.tensor([*range(24), *range(8)])  # the images drawn come twice
    assert views.shape == (32, SIDE, SIDE)
    assert (target - exact[source][:, source]).abs().max() < 0.03
    torch.testing.assert_close(target, target.T)
    same = target[source[:, None] == source]
    torch.testing.assert_close(same, torch.ones(32 + 16))
    assert target.min() < 0.3
    assert not torch.equal(views[:8], views[24:])  # changed each on its own


def test_images_are_drawn_with_neighbours_by_place_and_by_name():
    by_name = torch.tensor(np.random.default_rng(0).permutation(40))
    pool = Pool(torch.arange(40).half()[:, None, None].expand(40, 8, 8), by_name)
    place = {int(image): place for place, image in enumerate(by_name)}
    apart, seen = set(), set()
    for seed in range(60):
        drawn = pool.draw(16, torch.Generator().manual_seed(seed))
        assert drawn.shape == (16, 8, 8)
        assert drawn.dtype == torch.float32
        first, after, third, named = drawn[:, 0, 0].int().view(4, 4).tolist()
        assert after == [image + 1 for image in first]
        assert len(set(first)) == len(set(third)) == 4
        for one, other in zip(third, named, strict=True):
            if place[other] < 39:  # the last is drawn for all that would lie beyond it
                apart.add(place[other] - place[one])
            assert place[one] < place[other]
        seen.update(first, after, third, named)
    assert apart == set(range(1, 9))
    assert seen == set(range(40))


def test_files_of_one_name_are_neighbours():
    paths = ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "c/0.png", "c/2.png"]
    pixels = [torch.full((8, 8), float(number)) for number in range(7)]
    chosen = torch.tensor([True, True, False, True, True, True, True])
    pool = training._pool(pixels, paths, chosen)
    assert pool.pixels[:, 0, 0].tolist() == [0, 1, 3, 4, 5, 6]
    ordered = pool.pixels[pool.by_name][:, 0, 0].int().tolist()
    assert [paths[image] for image in ordered] == [
        "c/0.png",
        "a/1.png",
        "b/1.png",
        "a/2.png",
        "b/2.png",
        "c/2.png",
    ]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements=st.floats(-1, 1, width=32)))
def test_every_tenth_of_the_range_that_occurs_weighs_alike(target):
    weights = training._range_weights(torch.tensor(target)).numpy()
    bins = np.minimum(np.floor(np.clip(target, 0, 1) * np.float32(10)), 9)
    for each in np.unique(bins):
        chosen = weights[bins == each]
        assert chosen.sum() == pytest.approx(1, abs=1e-5)
        assert np.ptp(chosen) == 0


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
    config = TrainingConfig(steps=50, warmup=10)
    rates = [training._schedule(step, config) for step in range(config.steps)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == 1
    assert rates[30] == pytest.approx(0.5)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01
    short = TrainingConfig(steps=3, warmup=10)
    assert [training._schedule(step, short) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_row_30_a_run_with_dropout_resumes_to_the_same_bytes(images, tmp_path):
    pool = Architecture(
        depths=(1, 1),
        widths=(8, 16),
        channels="repeat",
        head="pool",
        dimension=8,
        standardisation=Standardisation(size=None),
    )
    whole = train(images, tmp_path / "a", CONFIG, pool)
    with pytest.raises(Killed):
        train(images, tmp_path / "b", CONFIG, pool, report=killed_after(5))
    resumed = train(images, tmp_path / "b", CONFIG, pool, resume=True)
    assert resumed.fingerprint == whole.fingerprint  # the batch norm's counts as well


def test_a_state_that_was_cut_short_is_named(images, tiny, tmp_path):
    with pytest.raises(Killed):
        train(images, tmp_path / "x", CONFIG, tiny, report=killed_after(5))
    state = tmp_path / "x.state"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"x\.state: damaged .* Leave --resume away"):
        train(images, tmp_path / "x", CONFIG, tiny, resume=True)


def test_holding_nearly_all_out_is_refused(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    config = TrainingConfig(held_out=0.9)
    with pytest.raises(InputError, match="63 of 70 images are held out, which leaves 7"):
        load_images(list_images(tmp_path), tiny, config, workers=0)
