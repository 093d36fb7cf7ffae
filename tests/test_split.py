"""What is held out: whole subjects of many, runs of neighbouring files of few."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepssim_scan.training.split import hold_out


def numbered(names):
    """Number names in the order in which they first appear."""
    numbers = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


SUBJECTS = st.lists(st.integers(0, 40), min_size=100, max_size=300).map(numbered)


@given(SUBJECTS, st.floats(0.01, 0.5), st.integers(0, 99))
def test_of_many_subjects_whole_ones_are_held_out(subjects, share, seed):
    """Any sizes, in any order, interleaved as slices of several patients are."""
    trained, held = hold_out(subjects, share, seed, known=False)
    if len(set(subjects)) >= 20:
        assert torch.equal(trained, ~held)
        sides = {(subject, bool(each)) for subject, each in zip(subjects, held, strict=True)}
        assert len(sides) == len(set(subjects))
        largest = max(subjects.count(each) for each in set(subjects))
        wanted = max(32, round(share * len(subjects)))
        assert wanted <= held.sum() < wanted + largest


@given(SUBJECTS, st.integers(0, 99))
def test_the_same_seed_holds_out_the_same(subjects, seed):
    for first, again in zip(
        hold_out(subjects, 0.3, seed, known=False),
        hold_out(subjects, 0.3, seed, known=False),
        strict=True,
    ):
        assert torch.equal(first, again)


def test_the_seed_chooses_the_subjects():
    subjects = [number // 5 for number in range(200)]
    chosen = {tuple(hold_out(subjects, 0.3, seed, known=False)[1].tolist()) for seed in range(10)}
    assert len(chosen) == 10


@pytest.mark.parametrize("subjects", [1, 19])
@pytest.mark.parametrize(
    ("count", "share", "runs", "gap"),
    [(64, 0.3, 2, 0), (133, 0.3, 2, 8), (1000, 0.05, 3, 8), (1001, 0.3, 7, 8), (10_000, 0.9, 7, 8)],
)
def test_of_few_subjects_runs_are_held_out_and_what_is_beside_them_is_left(
    subjects, count, share, runs, gap
):
    trained, held = hold_out(
        [n * subjects // count for n in range(count)], share, seed=count, known=False
    )
    wanted = max(32, round(share * count))
    assert wanted <= held.sum() < wanted + runs
    assert (held != held.roll(1)).sum() == 2 * runs
    circle = torch.arange(count)
    away = (circle[:, None] - circle[held]).abs()
    away = torch.minimum(away, count - away).amin(1)
    assert torch.equal(trained, away > gap)
    assert trained.sum() >= 32
