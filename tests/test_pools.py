"""Folders in memory: what is held out, what is drawn together, and the SSIM of what is made."""

import shutil
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import TINY_CONVNEXT, write
from pictures import drawn as picture

from deepssim_scan import pools
from deepssim_scan.augment import other_subject, perturb
from deepssim_scan.errors import InputError
from deepssim_scan.images import decode_images
from deepssim_scan.listing import list_images
from deepssim_scan.pools import Pool, load_images
from deepssim_scan.procedural import FAMILIES
from deepssim_scan.ssim import image_range, ssim_matrix
from deepssim_scan.transform import restandardise

SIDE = 32


def test_a_folder_is_split_without_overlap(corpus, tiny):
    seen = []
    listing = list_images(corpus)
    report = lambda *each: seen.append(each[-2:])  # noqa: E731
    images = load_images(listing, tiny, held_out=0.3, workers=0, report=report)
    training, validation = images.training.pixels, images.validation.pixels
    assert training.dtype == validation.dtype == torch.float16
    assert validation.shape == (36, SIDE, SIDE)
    assert training.shape == (120 - 36 - 2 * 2 * 8, SIDE, SIDE)  # 8 beside each end of two runs
    assert images.rejected == 0
    assert len(torch.cat([training, validation]).float().unique(dim=0)) == 88
    assert seen == [(number, 120) for number in range(1, 121)]


def test_at_least_32_images_are_held_out_and_the_seed_chooses_them(corpus, tiny):
    first, again, other = (
        load_images(
            list_images(corpus), tiny, held_out=0.01, seed=seed, workers=0
        ).validation.pixels
        for seed in (0, 0, 1)
    )
    assert len(first) == 32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_from_20_folders_on_folders_are_held_out_whole():
    paths = [f"site/{number // 7:03d}/{number}.png" for number in range(20 * 7)]
    trained, held = pools._split(paths, 0.3, 0)
    assert torch.equal(trained, ~held)
    folders = [str(PurePosixPath(path).parent) for path in paths]
    inside = {name for name, each in zip(folders, held, strict=True) if each}
    outside = {name for name, each in zip(folders, held, strict=True) if not each}
    assert not inside & outside
    assert 42 <= held.sum() < 42 + 7


@pytest.mark.parametrize(
    ("count", "share", "runs", "apart"),
    [(64, 0.3, 2, 0), (133, 0.3, 2, 8), (1000, 0.05, 3, 8), (1001, 0.3, 7, 8), (10_000, 0.9, 7, 8)],
)
def test_of_few_folders_runs_are_held_out_and_what_is_beside_them_is_left(
    count, share, runs, apart
):
    names = [f"{number:05d}.png" for number in range(count)]
    trained, held = pools._split(names, share, seed=count)
    wanted = max(32, round(share * count))
    assert wanted <= held.sum() < wanted + runs
    assert (held != held.roll(1)).sum() == 2 * runs
    circle = torch.arange(count)
    away = (circle[:, None] - circle[held]).abs()
    away = torch.minimum(away, count - away).amin(1)
    assert torch.equal(trained, away > apart)
    assert trained.sum() >= 32


def test_an_image_that_is_held_out_is_not_trained_on_under_another_name(tmp_path, tiny):
    """It would be taken for a stranger who looks like a copy."""
    write(tmp_path, 100, per_folder=100)
    shutil.copytree(tmp_path / "000", tmp_path / "again")
    images = load_images(list_images(tmp_path), tiny, workers=0)
    known = images.training.pixels.flatten(1)
    assert len(known) > 100
    assert not any((known == held).all(1).any() for held in images.validation.pixels.flatten(1))


def test_folders_are_held_out_whole_on_disk_too(tmp_path, tiny):
    write(tmp_path, 80, per_folder=4)  # 20 folders
    listing = list_images(tmp_path)
    validation = load_images(listing, tiny, held_out=0.3, workers=0).validation.pixels
    assert len(validation) == 32
    decoded = decode_images(listing, tiny.standardisation, workers=0)
    everything = torch.stack([torch.from_numpy(each.pixels).half() for (each,) in decoded])
    held = (everything[:, None] == validation).flatten(2).all(2).any(1)
    assert held.unflatten(0, (20, 4)).float().mean(1).unique().tolist() == [0, 1]


def test_no_more_than_max_images_are_read(corpus, tiny):
    listing, most = list_images(corpus), {"max_images": 70, "workers": 0}
    images = load_images(listing, tiny, **most)
    assert len(images.training.pixels) == 70 - 32 - 2 * 2 * 1
    assert len(images.validation.pixels) == 32
    other = load_images(listing, tiny, seed=1, **most)
    assert not torch.equal(images.training.pixels[:30], other.training.pixels[:30])


def test_rejected_images_are_counted(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    (tmp_path / "000" / "0003.png").write_bytes(b"no image")
    images = load_images(list_images(tmp_path), tiny, held_out=0.3, workers=0)
    assert images.rejected == 1
    assert len(images.training.pixels) == 69 - 32 - 2 * 2 * 1
    assert len(images.validation.pixels) == 32


def test_fewer_than_64_images_are_refused(tmp_path, tiny):
    write(tmp_path, 64, per_folder=64)
    load_images(list_images(tmp_path), tiny, held_out=0.3, workers=0)
    (tmp_path / "000" / "0003.png").unlink()
    with pytest.raises(InputError, match="63 readable images; training needs 64"):
        load_images(list_images(tmp_path), tiny, held_out=0.3, workers=0)


def test_several_sizes_are_refused_where_they_stay(tmp_path, tiny):
    write(tmp_path / "a", 60, per_folder=60)
    write(tmp_path / "b", 10, per_folder=10, side=40)
    load_images(list_images(tmp_path), tiny, held_out=0.3, workers=0)
    with pytest.raises(InputError, match="images of several sizes"):
        load_images(list_images(tmp_path), TINY_CONVNEXT, workers=0)


def test_images_too_small_for_the_architecture_are_refused(tmp_path):
    write(tmp_path, 64, per_folder=64, side=8)
    load_images(list_images(tmp_path), TINY_CONVNEXT, workers=0)
    deeper = replace(TINY_CONVNEXT, depths=(1,) * 3, widths=(8,) * 3)
    with pytest.raises(InputError, match="images of 8 pixels a side; this architecture needs 16"):
        load_images(list_images(tmp_path), deeper, workers=0)


def test_holding_nearly_all_out_is_refused(tmp_path, tiny):
    write(tmp_path, 70, per_folder=70)
    with pytest.raises(InputError, match="of 70 images 63 are held out and 7 are left"):
        load_images(list_images(tmp_path), tiny, held_out=0.9, workers=0)


def test_a_batch_has_the_ssim_of_all_its_sources():
    families = list(FAMILIES.values())
    made = [picture(number, 128, families[number % len(families)]) for number in range(8)]
    drawn = restandardise(torch.tensor(np.stack(made)).float())
    sources, target = pools.pairs(drawn, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    clean = torch.cat([drawn, perturb(drawn, generator), other_subject(drawn, generator)])
    exact = ssim_matrix(clean, clean, image_range(clean))
    exact = (exact + exact.T) / 2
    source = torch.tensor([*range(24), *range(8)])  # the images drawn come twice
    torch.testing.assert_close(sources, clean[source])
    assert (target - exact[source][:, source]).abs().max() < 0.03
    torch.testing.assert_close(target, target.T)
    same = target[source[:, None] == source]
    torch.testing.assert_close(same, torch.ones(32 + 16))
    assert target.min() < 0.3


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
    pool = pools._pool(pixels, paths, chosen)
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
    weights = pools.range_weights(torch.tensor(target)).numpy()
    bins = np.minimum(np.floor(np.clip(target, 0, 1) * np.float32(10)), 9)
    for each in np.unique(bins):
        chosen = weights[bins == each]
        assert chosen.sum() == pytest.approx(1, abs=1e-5)
        assert np.ptp(chosen) == 0
