"""Images in memory: what is drawn together, and the SSIM of what is made of a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import drawn as picture
from skimage.metrics import structural_similarity

from deepssim_scan.imaging.image_set import ImageSet, distinct, pairs, range_weights
from deepssim_scan.imaging.warp import restandardise
from deepssim_scan.training.procedural import FAMILIES


def test_a_batch_has_the_ssim_of_all_its_pairs():
    """Scikit-image's, within what skipping windows costs."""
    families = list(FAMILIES.values())
    made = [picture(number, 128, families[number % len(families)]) for number in range(8)]
    images = restandardise(torch.tensor(np.stack(made)).float())
    sources, target = pairs(images, torch.Generator().manual_seed(5))
    assert torch.equal(sources[:8], images)
    assert torch.equal(sources[24:], images)
    changed = (sources[8:24] - torch.cat([images, images])).abs().amax((1, 2))
    assert changed.min() > 0.1  # perturbed, and other subjects
    torch.testing.assert_close(target, target.T)
    each = sources.double().numpy()
    for one, other in np.random.default_rng(0).integers(32, size=(60, 2)):
        both = [
            structural_similarity(each[one], each[other], data_range=np.ptp(each[base]))
            for base in (one, other)
        ]
        assert abs(float(target[one, other]) - np.mean(both)) < 0.03
    source = torch.tensor([*range(24), *range(8)])
    same = target[source[:, None] == source]
    torch.testing.assert_close(same, torch.ones(32 + 16))
    assert target.min() < 0.3


def test_images_are_drawn_with_neighbours_by_index_and_by_name():
    by_name = torch.tensor(np.random.default_rng(0).permutation(40))
    images = ImageSet(torch.arange(40).half()[:, None, None].expand(40, 8, 8), by_name)
    position = {int(image): position for position, image in enumerate(by_name)}
    distances, seen = set(), set()
    for seed in range(60):
        batch = images.draw(16, torch.Generator().manual_seed(seed))
        assert batch.shape == (16, 8, 8)
        assert batch.dtype == torch.float32
        first, after, third, named = batch[:, 0, 0].int().view(4, 4).tolist()
        assert after == [image + 1 for image in first]
        assert len(set(first)) == len(set(third)) == 4
        for one, other in zip(third, named, strict=True):
            if position[other] < 39:  # the last is drawn for all that would lie beyond it
                distances.add(position[other] - position[one])
            assert position[one] < position[other]
        seen.update(first, after, third, named)
    assert distances == set(range(1, 9))
    assert seen == set(range(40))


def test_files_of_one_name_are_neighbours():
    paths = ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/0.png", "c/2.png"]
    images = ImageSet.of([torch.full((8, 8), float(number)).half() for number in range(6)], paths)
    assert len(images) == 6
    assert images.pixels[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    ordered = images.pixels[images.by_name][:, 0, 0].int().tolist()
    assert [paths[image] for image in ordered] == [
        "c/0.png",
        "a/1.png",
        "b/1.png",
        "a/2.png",
        "b/2.png",
        "c/2.png",
    ]


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 9))
def test_indices_that_are_drawn_differ(stop, count, seed):
    found = distinct(stop, count, torch.Generator().manual_seed(seed)).tolist()
    assert len(set(found)) == len(found) == min(count, stop)
    assert set(found) <= set(range(stop))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2), elements=st.floats(-1, 1, width=32)))
def test_every_tenth_of_the_range_that_occurs_has_the_same_weight(target):
    weights = range_weights(torch.tensor(target)).numpy()
    bins = np.minimum(np.floor(np.clip(target, 0, 1) * np.float32(10)), 9)
    for each in np.unique(bins):
        chosen = weights[bins == each]
        assert chosen.sum() == pytest.approx(1, abs=1e-5)
        assert np.ptp(chosen) == 0
