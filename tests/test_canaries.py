"""Canaries: counted as flagged, and a detector that is broken is noticed."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta, binom
from test_rule import calibration

from deepssim_scan.calibration.canaries import count_canaries
from deepssim_scan.calibration.found import Found, Planted
from deepssim_scan.calibration.rule import CalibratedRule
from deepssim_scan.cli import main
from deepssim_scan.encoder import checkpoint
from deepssim_scan.errors import InputError
from deepssim_scan.imaging.names import KINDS
from deepssim_scan.jobs import query as query_job
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.matching.statistic import FEATURES

RATE = 0.05


def looked_for(statistics, decidable=True):
    """What was found of canaries (Q,) with these statistics of their candidates (Q, n)."""
    statistics = np.array(statistics, float)
    features = np.zeros((*statistics.shape, len(FEATURES)))
    features[..., 0] = statistics
    rows = np.zeros(statistics.shape, np.int64)
    enough = np.broadcast_to(decidable, statistics.shape)
    return Found(rows, features, enough, np.arange(len(rows)))


def planted(kinds):
    return Planted((), np.array(kinds, np.int64), np.arange(len(kinds)))


def test_canaries_are_counted_by_kind():
    rule = CalibratedRule(calibration(), RATE)
    high, low = rule.bounds.duplicate + 0.1, rule.bounds.duplicate - 0.1
    found = looked_for([[low, high], [low, low], [high, low], [np.nan, low]])
    counted = count_canaries(planted([0, 0, 2, 2]), found, rule, 0.5)
    assert counted.found == {KINDS[0]: 1, KINDS[2]: 1}
    assert counted.planted == {KINDS[0]: 2, KINDS[2]: 2}
    assert (counted.count, counted.passed) == ((2, 4), True)
    said = counted.as_json()
    assert said["by_kind"] == {KINDS[0]: [1, 2], KINDS[2]: [1, 2]}
    assert said["recall"] == 0.5
    assert said["recall_95"][0] < 0.5 < said["recall_95"][1]
    assert not count_canaries(planted([0, 0, 2, 2]), found, rule, 0.51).passed


def test_a_candidate_without_evidence_hides_no_other():
    """As in a query, where the image would be flagged for the other one."""
    rule = CalibratedRule(calibration(), RATE)
    counted = count_canaries(planted([1]), looked_for([[np.nan, 9.0]]), rule, None)
    assert counted.count == (1, 1)


def test_a_canary_on_which_too_little_is_compared_is_not_found():
    """A query says of such an image that it is undecidable, whatever its statistic is."""
    rule = CalibratedRule(calibration(), RATE)
    found = looked_for([[9.0, 0.0], [9.0, 9.0]], decidable=[[False, True], [False, True]])
    assert count_canaries(planted([0, 0]), found, rule, None).count == (1, 2)


def test_without_a_canary_nothing_is_known():
    counted = count_canaries(
        planted([]), looked_for(np.empty((0, 0))), CalibratedRule(calibration(), RATE), None
    )
    assert counted.as_json()["recall"] is None
    assert counted.as_json()["recall_95"] == [0.0, 1.0]
    assert not counted.passed


@pytest.mark.parametrize("count", [10, 60, 200])
def test_a_detector_as_good_as_it_was_calibrated_passes_but_for_one_run_in_a_thousand(count):
    """Of 80 % that the calibration found; the least number is the last that chance explains."""
    copies = {"identity": (2.0,) * 300, "noise": (2.0, 0.0) * 100}
    rule = CalibratedRule(calibration(planted=copies), RATE)
    assert rule.calibration.found(RATE) == 0.8
    lowest = beta.ppf(0.025, 400, 101)  # of Clopper and Pearson
    passes = []
    for found in range(count + 1):
        statistics = np.repeat([[9.0], [0.0]], [found, count - found], 0)
        passes.append(
            count_canaries(planted([0] * count), looked_for(statistics), rule, None).passed
        )
    least = passes.index(True)
    assert all(passes[least:])
    assert binom.cdf(least - 1, count, lowest) < 0.001 <= binom.cdf(least, count, lowest)


def test_a_calibration_that_found_all_of_a_few_does_not_ask_for_all():
    """Of 40 of 40, one detector in forty finds 91.2 % or less."""
    rule = CalibratedRule(calibration(planted={"identity": (2.0,) * 40}), RATE)
    assert rule.calibration.found(RATE) == 1
    for found, passed in ((28, True), (27, True), (19, False), (0, False)):
        statistics = np.repeat([[9.0], [0.0]], [found, 28 - found], 0)
        counted = count_canaries(planted([0] * 28), looked_for(statistics), rule, None)
        assert counted.passed == passed


@pytest.mark.parametrize("calibrated", [0, 10, 19])
def test_a_detector_that_finds_few_copies_does_not_pass_as_it_was_calibrated(calibrated):
    """No copy found would say nothing: nearly half must be found, whatever was predicted."""
    copies = {"identity": (2.0,) * calibrated + (0.0,) * (40 - calibrated)}
    rule = CalibratedRule(calibration(planted=copies), RATE)
    assert rule.calibration.found(RATE) == calibrated / 40
    for found, passed in ((0, False), (60, False), (77, False), (78, True)):
        statistics = np.repeat([[9.0], [0.0]], [found, 200 - found], 0)
        counted = count_canaries(planted([0] * 200), looked_for(statistics), rule, None)
        assert counted.passed == passed
    assert binom.cdf(77, 200, 0.5) < 0.001 <= binom.cdf(78, 200, 0.5)
    nothing = looked_for(np.zeros((200, 1)))
    assert count_canaries(planted([0] * 200), nothing, rule, 0.0).passed


@pytest.mark.parametrize(("count", "least"), [(-1, None), (5, 1.5), (5, -0.1)])
def test_impossible_canaries_are_refused(count, least):
    with pytest.raises(InputError, match=r"count must be|least must be"):
        CanaryConfig(count, least)


# As a user runs it.


@pytest.fixture
def query(people, tmp_path, monkeypatch, capsys):
    """Run the command on one synthetic image: exit code, summary, and what was said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    Image.fromarray(noise).save(tmp_path / "synthetic" / "noise.png")

    def call(*options):
        command = ["query", "--synthetic", "synthetic", "--index", str(people / "index")]
        monkeypatch.setattr(sys, "argv", ["deepssim-scan", *command, "--workers", "1", *options])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        path = tmp_path / "deepssim-report" / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() else None
        return code, summary, " ".join(" ".join(capsys.readouterr()).split())

    return call


def test_an_image_that_is_undecidable_may_be_a_copy(query, tmp_path):
    """At most 0 % were said to be copies of a set of which nothing can be told."""
    speck = np.zeros((128, 128), np.uint8)
    speck[40:60, 40:60] = np.random.default_rng(0).integers(0, 255, (20, 20))
    for name in ("noise", *range(5)):
        Image.fromarray(speck).save(tmp_path / "synthetic" / f"{name}.png")
    code, summary, said = query("--canaries", "28")
    assert (code, summary["counts"]["undecidable"]) == (0, 6)
    assert summary["most_copies_95"] == 1
    assert "At most 100.00% of the images are copies" in said


def test_the_p_value_of_similar_images_is_told_as_it_is_judged(query):
    """Ten times the rate of duplicates, but never above a half unless that is."""
    for rate, similar in ((0.02, "0.2"), (0.2, "0.5"), (0.9, "0.9")):
        *_, said = query("--canaries", "0", "--false-alarm", str(rate))
        assert f"p-value < {rate:g} " in said
        assert said.count(f"p-value < {similar} ") == 1 + (f"{rate:g}" == similar)


@pytest.mark.parametrize(
    "options",
    [
        ("--no-verify", "--false-alarm", "0.01"),
        ("--no-verify", "--min-canary-recall", "0.9"),
        ("--rule", "reference", "--min-canary-recall", "0.9"),
        ("--canaries", "0", "--min-canary-recall", "0.9"),
    ],
)
def test_an_option_that_nothing_would_go_by_is_wrong_usage(query, options):
    """They were ignored: a run that was to miss no canary planted none, and was complete."""
    code, *_ = query("--canaries", "28", *options)
    assert code == 2


def test_a_detector_that_works_finds_its_canaries(query):
    code, summary, said = query("--canaries", "28")
    canaries = summary["canaries"]
    assert (code, summary["complete"], canaries["passed"]) == (0, True, True)
    assert canaries["planted"] == 28
    assert canaries["found"] >= 20
    assert sum(found for found, _ in canaries["by_kind"].values()) == canaries["found"]
    assert f"Canaries: {canaries['found']} of 28 planted copies were found." in said
    assert 0 < summary["most_copies_95"] <= 1
    code, summary, said = query("--canaries", "28", "--min-canary-recall", "1")
    assert (code == 0) == (canaries["found"] == 28)
    code, summary, said = query("--canaries", "0")
    assert (code, summary["canaries"], summary["most_copies_95"]) == (0, None, None)
    assert "Canaries" not in said


def test_a_broken_encoder_is_noticed_and_the_run_is_incomplete(
    query, people, make_encoder, monkeypatch, tmp_path
):
    """One of random weights, where the index has the embeddings of the right one."""
    architecture = query_job.index_encoder(people / "index").architecture
    checkpoint.save(tmp_path / "broken", make_encoder(architecture), {})
    broken = checkpoint.load(tmp_path / "broken")
    monkeypatch.setattr(query_job, "index_encoder", lambda index: broken)
    monkeypatch.setattr(query_job, "require_encoder", lambda *_: None)
    code, summary, said = query("--canaries", "28", "--fail-on-flagged")
    assert (code, summary["complete"], summary["canaries"]["passed"]) == (4, False, False)
    assert summary["canaries"]["found"] < 14
    assert summary["verification"]["not_registered"] == summary["counts"]["rejected"] == 0
    assert "CANARIES MISSED" in said
    assert "INCOMPLETE, so this is no clean result." in said
    assert "Canaries were missed." in said


def test_where_no_canary_can_be_planted_the_run_is_not_complete(query, tmp_path, monkeypatch):
    """The training images are gone, and the evidence is that of the report in place."""
    assert query("--canaries", "28")[0] == 0
    monkeypatch.setattr(query_job, "_files", lambda *_: None)
    code, summary, said = query("--canaries", "28", "--false-alarm", "0.05")
    assert summary["verification"]["not_registered"] == 0
    assert (code, summary["complete"], summary["canaries"]["planted"]) == (4, False, 0)
    assert summary["most_copies_95"] == 1
    assert "Canaries were missed." in said
    assert "NO CANARIES: no training image could be read" in said
    assert "calibrate it again" not in said
    page = (tmp_path / "deepssim-report" / "report.html").read_text()
    assert "No copy was planted, because no training image could be read." in page
    assert "Missed copies" not in page
