"""Anatomy that is drawn to train on: every draw another body, alike as far as that is asked for."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepssim_scan.encoder import checkpoint
from deepssim_scan.encoder.architecture import FAST, SMALL, Architecture
from deepssim_scan.encoder.network import Encoder, embed
from deepssim_scan.training.procedural import FAMILIES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from anatomy.ahead import Ahead
from anatomy.body import Draw
from anatomy.fresh import KINDS, Fresh
from bundled_encoder import of_shape
from smaller import smaller

SIDE = 64
BODIES = sorted(KINDS.keys() - FAMILIES.keys())


def drawn(kind, seed=0, spread=1.0):
    return KINDS[kind](Draw(torch.Generator().manual_seed(seed), 4, spread), SIDE)


def correlation(images):
    """The mean correlation of different images."""
    found = np.corrcoef(images.flatten(1).numpy())
    return found[~np.eye(len(found), dtype=bool)].mean()


@pytest.mark.parametrize("kind", BODIES)
def test_every_draw_shows_something_and_none_is_of_the_same_body(kind):
    images = drawn(kind)
    assert images.shape == (4, SIDE, SIDE)
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std((1, 2)).min() > 0.02
    assert torch.equal(images, drawn(kind))
    others = torch.cat([images, drawn(kind, seed=1)])
    assert np.corrcoef(others.flatten(1).numpy())[~np.eye(8, dtype=bool)].max() < 0.999


@pytest.mark.parametrize("kind", sorted({*BODIES} - {"head-projections"}))
def test_bodies_that_are_to_be_alike_are(kind):
    alike, any_kind = (
        np.mean([correlation(drawn(kind, seed, spread)) for seed in range(6)])
        for spread in (0.05, 1.0)
    )
    assert alike > any_kind + 0.03


def test_what_is_drawn_depends_on_the_seed_of_the_generator_alone():
    fresh = Fresh({"chests": 0.5, "sections": 0.5}, SMALL.standardisation)
    one, again, other = (fresh.draw(8, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert one.shape == (8, 128, 128)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.mean((1, 2)), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(one.std((1, 2)), torch.ones(8), rtol=0, atol=1e-2)


def test_what_is_drawn_ahead_is_the_same():
    fresh = Fresh({"chests": 0.5, "dead-leaves": 0.5}, SMALL.standardisation)
    ahead = Ahead(fresh, workers=1)
    for count, seed in ((4, 3), (4, 4), (8, 5), (4, 9), (4, 3)):
        one, other = (of.draw(count, torch.Generator().manual_seed(seed)) for of in (fresh, ahead))
        assert torch.equal(one, other)
    assert (ahead.digest(), len(ahead)) == (fresh.digest(), 0)


@torch.no_grad()
def test_an_encoder_that_is_to_learn_scales_finds_the_same_angles_and_shifts(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "without.safetensors", Encoder(Architecture()), {})
    before = checkpoint.load(tmp_path / "without.safetensors")
    after = of_shape(replace(Architecture(), scale=True), before, tmp_path / "with.safetensors")
    images = Fresh({"chests": 1.0}, SMALL.standardisation).draw(4, torch.Generator().manual_seed(0))
    poses, found = (each.encoder.with_pose(images[:, None])[1] for each in (before, after))
    assert after.architecture.scale
    torch.testing.assert_close(found[:, :3], poses)
    assert 0 < found[:, 3].abs().max() < 0.1


@torch.no_grad()
def test_a_smaller_encoder_begins_near_the_larger_one():
    torch.manual_seed(0)
    large = Encoder(SMALL).eval()
    fresh = Fresh({"chests": 0.5, "heads": 0.5}, SMALL.standardisation)
    fitted, others = (fresh.draw(16, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    small = smaller(large, FAST, fitted)
    poses, found = (each.with_pose(others[:, None])[1] for each in (large, small))
    assert (found - poses).abs().mean() < 0.2 * poses.abs().mean()
    own, theirs = (embed(each, others) for each in (small, large))
    own, theirs = own - own.mean(0), theirs - theirs.mean(0)
    assert (own @ theirs.T).argmax(1).tolist() == list(range(16))
