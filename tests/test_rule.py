"""Rules: statistics, p-values and verdicts of candidates, counted again one pair at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.calibration.calibration import Calibration
from deepssim_scan.calibration.null import NullDistribution
from deepssim_scan.calibration.rule import CalibratedRule, ReferenceRule
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.names import NAMES
from deepssim_scan.index.rescore import Matches
from deepssim_scan.matching.decision import LEAST_FOREGROUND, REFERENCE, VERDICTS, Bounds
from deepssim_scan.matching.evidence import Evidence
from deepssim_scan.matching.parts import Part
from deepssim_scan.matching.statistic import FEATURES, Statistic

NULL = np.random.default_rng(0).normal(0.5, 0.3, 150).round(2)  # too few for a tail; some are ties
SUBJECTS = np.arange(30) // 3
STRENGTH = ("different", "undecidable", "similar", "duplicate")


def calibration(null=NULL, subjects=None, **changes):
    """A calibration whose statistic is the spread score."""
    weights = tuple(float(name == "score") for name in FEATURES)
    of = np.arange(len(null)) if subjects is None else subjects
    values = {
        "encoder": "e",
        "store": "s",
        "gallery": 30,
        "candidates": 4,
        "tta_views": 4,
        "enough": (0.8, 0.7),
        "subjects": "known",
        "statistic": Statistic(weights, 0.0),
        "null": NullDistribution.of(null, of, 0),
        "planted": {"identity": (2.0, 3.0), "noise": (0.0, 1.5)},
        "source_first": 1.0,
        "duplicates": (),
    }
    return Calibration(**(values | changes))


def part(seed, images=5, count=4):
    """Candidates of some images with evidence.

    Some pairs have none, some were looked at and not registered, and some show little.
    """
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(30)[:count] for _ in range(images)])
    scores = np.tanh(rng.normal(0.7, 0.5, rows.shape)).astype(np.float32)
    matches = Matches(rows, -np.sort(-scores, 1), np.zeros(rows.shape, np.int8))
    evidence = Evidence.none(rows.shape)
    evidence.measures[:] = rng.uniform(-0.5, 1, evidence.measures.shape)
    evidence.foreground[:] = rng.uniform(0, 0.2, rows.shape)
    evidence.correlation[:] = rng.uniform(-1, 1, rows.shape)
    left_out = rng.random(rows.shape) < 0.3
    evidence.measures[left_out], evidence.foreground[left_out] = np.nan, np.nan
    evidence.correlation[left_out & (rng.random(rows.shape) < 0.6)] = np.nan
    return Part(matches, evidence)


def verdict_of(rule, score, statistic, evidence, at):
    """The verdict of one pair, by comparisons."""
    if evidence.foreground[at] < LEAST_FOREGROUND:
        return "undecidable"
    if np.isnan(statistic) and np.isfinite(evidence.correlation[at]):
        return "different"
    value, bounds = (statistic, rule.bounds) if np.isfinite(statistic) else (score, REFERENCE)
    if value > bounds.duplicate:
        return "duplicate"
    return "similar" if value > bounds.similar else "different"


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.05, 0.3]))
def test_every_pair_is_judged_as_one_alone(seed, rate):
    rule, given_part = CalibratedRule(calibration(), rate), part(seed)
    judged = rule.judge(given_part, SUBJECTS[given_part.candidates.rows])
    scores, evidence = given_part.candidates.scores, given_part.evidence
    for at in np.ndindex(scores.shape):
        left_out, statistic = not evidence.registered[at], judged.statistics[at]
        assert np.isnan(statistic) == np.isnan(judged.p_values[at]) == left_out
        assert left_out or statistic == pytest.approx(np.arctanh(min(scores[at], 0.999)), rel=1e-5)
        said = verdict_of(rule, scores[at], statistic, evidence, at)
        assert VERDICTS[judged.verdicts[at]] == said


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_the_strongest_pair_comes_first(seed):
    """By verdict, then statistic, then score; an undecidable pair is under a similar one."""
    given_part = part(seed)
    whose = SUBJECTS[given_part.candidates.rows]
    judged = CalibratedRule(calibration(), 0.05).judge(given_part, whose)
    for image, order in enumerate(judged.order):
        keys = [
            (
                STRENGTH.index(VERDICTS[judged.verdicts[image, column]]),
                np.nan_to_num(judged.statistics[image, column], nan=-np.inf),
                given_part.candidates.scores[image, column],
            )
            for column in order
        ]
        assert keys == sorted(keys, reverse=True)
        assert sorted(order) == [0, 1, 2, 3]


def test_a_p_value_is_the_share_of_the_null_that_is_as_high():
    """Counted among one more than there are."""
    scores = np.tanh(np.unique(NULL)[1:, None]).astype(np.float32)
    scores = np.concatenate([scores, np.tanh([[NULL.max() + 0.1]]).astype(np.float32)])
    evidence = Evidence.none(scores.shape)
    evidence.measures[:], evidence.foreground[:], evidence.correlation[:] = 0.1, 0.5, 0.5
    zeros = np.zeros(scores.shape, np.int64)
    candidates = Part(Matches(zeros, scores, zeros.astype(np.int8)), evidence)
    judged = CalibratedRule(calibration(), 0.01).judge(candidates, SUBJECTS[zeros])
    for value, found in zip(judged.statistics[:-1, 0], judged.p_values[:-1, 0], strict=True):
        as_high = np.count_nonzero(value - 1e-4 < NULL)
        assert found == pytest.approx(as_high / 151, rel=1e-3)
    assert judged.p_values[-1, 0] == pytest.approx(1 / 151)


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.1])
def test_of_the_null_itself_the_rate_is_flagged(rate):
    rule = CalibratedRule(calibration(), rate)
    assert (rule.bounds.duplicate < NULL).mean() == pytest.approx(rate, abs=2 / 150)
    assert (rule.bounds.similar < NULL).mean() == pytest.approx(min(10 * rate, 0.5), abs=5 / 150)


def test_ten_times_a_rate_of_a_half_is_no_rate():
    bounds = CalibratedRule(calibration(), 0.7).bounds
    assert bounds.similar == bounds.duplicate == pytest.approx(np.quantile(NULL, 0.3), abs=0.03)


def test_the_reference_rule_judges_by_the_score_alone():
    given_part = part(4)
    judged = ReferenceRule(Bounds(0.2, 0.7)).judge(given_part, SUBJECTS[given_part.candidates.rows])
    scores = given_part.candidates.scores
    wanted = np.where(scores > 0.7, "duplicate", np.where(scores > 0.2, "similar", "different"))
    assert (np.array(VERDICTS)[judged.verdicts] == wanted).all()
    assert np.isnan(judged.statistics).all()
    assert np.isnan(judged.p_values).all()
    assert (judged.order == np.arange(4)).all()


def test_judgements_in_another_order():
    given_part = part(7)
    whose = SUBJECTS[given_part.candidates.rows]
    judged = CalibratedRule(calibration(), 0.05).judge(given_part, whose)
    order = np.argsort(np.random.default_rng(0).random((5, 4)), 1)[:, :2]
    moved = judged.reordered(order)
    for name in ("verdicts", "statistics", "p_values", "order"):
        wanted = [[getattr(judged, name)[i, j] for j in row] for i, row in enumerate(order)]
        assert np.array_equal(getattr(moved, name), np.array(wanted), equal_nan=True)


def test_the_default_rate_is_as_low_as_the_null_supports():
    few, many = calibration(), calibration(np.random.default_rng(1).normal(size=3000))
    assert few.false_alarm(None) == pytest.approx(1 / 151)
    assert many.false_alarm(None) == 0.001
    assert few.false_alarm(0.2) == 0.2
    with pytest.raises(InputError, match=r"0\.001 was asked for; the null of 150 .*0\.00663"):
        few.false_alarm(0.001)


def test_planted_copies_above_the_bound_are_found():
    found = calibration()
    rate = 0.05
    bound = found.null.threshold(rate)
    assert 0.5 < bound < 1.5
    assert found.sensitivity(rate) == {"identity": 1.0, "noise": 0.5}
    assert found.found(rate) == 0.75
    assert calibration(planted={"noise": (), "blur": (2.0,)}).sensitivity(rate) == {"blur": 1.0}


def test_the_summary_says_how_often_verdicts_are_wrong():
    groups = np.arange(150) // 5
    found = calibration(subjects=groups, duplicates=(("a", "b"),))
    said = found.summary(0.02)
    assert said["non_members"] == {"images": 150, "subjects": 30, "from": "known"}
    assert (said["planted"], said["training_duplicates"]) == (4, 1)
    assert 0.02 < said["false_alarm_upper_95"] < 0.2
    assert said["sensitivity"] == found.found(0.02)


def test_features_are_of_the_score_and_the_measures():
    assert FEATURES[: len(NAMES) + 2] == ("score", "correlation", *NAMES)
