"""report.html: what it says of a run, and that nothing that it shows can act."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepssim_scan.reporting.distributions import Distributions
from deepssim_scan.reporting.html.page import Content, page
from deepssim_scan.reporting.html.words import at_least, at_most, rate_at_most
from deepssim_scan.reporting.match import Match
from deepssim_scan.reporting.partial import PartialCopy
from deepssim_scan.reporting.pictures import Pictures
from deepssim_scan.reporting.plots import draw_distributions
from deepssim_scan.reporting.subjects import reproduced
from deepssim_scan.reporting.volumes import CopiedVolume

TRANSFORM = {
    "flip": "horizontal",
    "degrees": 5.0,
    "right": 0.0,
    "down": 2.0,
    "gamma": 1.0,
    "scale": 1.0,
    "quarter_turn": True,
    "inverted": False,
}
EDGES = np.linspace(-2, 10, 61)
SHOWN = Distributions(
    "statistic", EDGES.tolist(), [5] * 60, [1] * 60, [0] * 20 + [3] * 40, 2.0, 4.0
)


VOLUMES = [
    CopiedVolume(
        "v.nii", "duplicate", 9, 8, "t.nii", "p1", 7, 1.0, 1e-4, 0.9, "f", 0.95, 0.8,
        (1.0, 2.0, 3.0), (0.0, 0.1, 0.0), 1.0,
    )
]  # fmt: skip
PARTIAL = [PartialCopy(3, "part.png", "t9.png", "p9", 0.002, 0.9, True, 0, 10, 64, 74)]


def summary(**changed):
    counts = {
        "listed": 21,
        "judged": 20,
        "rejected": 0,
        "blank": 0,
        "duplicate": 2,
        "similar": 1,
        "different": 17,
        "undecidable": 0,
        "training_indexed": 40,
        "training_rejected": 0,
    }
    whole = {
        "complete": True,
        "counts": counts,
        "subjects": {"training": 10, "flagged": 1, "unnamed": 0},
        "calibration": {
            "false_alarm": 0.001,
            "false_alarm_upper_95": 0.004,
            "expected_false_alarms": 0.02,
            "non_members": {"images": 600, "subjects": 10, "from": "known"},
            "sensitivity": 0.99,
            "same_patient": {"images": 40, "flagged": 2},
            "planted": 560,
            "digest": "ab" * 32,
        },
        "canaries": {
            "planted": 200,
            "found": 198,
            "passed": True,
            "least": 0.9,
            "by_kind": {"exact": [100, 100], "noise": [98, 100]},
        },
        "search": {
            "type": "HNSW32_SQ8",
            "effort": 64,
            "exact": False,
            "least": 0.99,
            "passed": True,
            "sample": {
                "queries": 4000,
                "best_found": 3999,
                "recall": 0.99975,
                "recall_at_least_95": 0.9988,
                "recall_of_candidates": 0.998,
            },
            "canaries": None,
        },
        "most_copies_95": 0.1234,
        "mismatches": [{"code": "hub", "text": "One is near all.", "advice": "Look at it."}],
        "volumes": {"judged": 9, "flagged": 2, "duplicate": 1},
        "partial": {
            "looked_for": 100,
            "flagged": 1,
            "subjects": 1,
            "false_alarm": 0.01,
            "expected_false_alarms": 1.0,
            "beyond_chance": False,
            "false_alarm_upper_95": 0.02,
            "sensitivity": {"half": 0.95, "quarter": 0.7},
        },
        "membership": {
            "members": 900,
            "non_members": 800,
            "auc": {"value": 0.71, "low": 0.66, "high": 0.75},
            "true_positives": {
                "0.01": {"value": 0.4, "low": 0.3, "high": 0.5},
                "0.001": {"value": 0.3, "low": 0.2, "high": 0.4},
            },
            "control": {"value": 0.49, "low": 0.44, "high": 0.54},
            "seen": False,
        },
        "verification": {"registered": 160, "not_registered": 0},
        "candidates": 8,
        "excluded": 0,
        "provenance": {},
        "ignored": 0,
        "fingerprints": {"encoder": "e" * 64, "training": "t" * 64, "synthetic": "s" * 64},
        "versions": {"deepssim-scan": "0.1.0"},
        "made": "2026-01-02T03:04:05+00:00",
    }
    return whole | changed


def match(number, synthetic=None, training="p1/a.png", subject="p1"):
    return Match(
        synthetic or f"{number:05d}.png",
        1,
        training,
        0.9 - number * 1e-5,
        "duplicate",
        ssim=0.95,
        transform=TRANSFORM,
        subject=subject,
        p_value=1e-4,
        finding=f"{number:016x}",
    )


def content(findings=None, **changed):
    found = [match(0), match(1)] if findings is None else findings
    tables = found, reproduced(found), VOLUMES, PARTIAL
    return Content("Copies", summary(**changed), *tables, SHOWN, draw_distributions(SHOWN, "svg"))


class _Parsed(HTMLParser):
    """Collects the elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def flat(text):
    return " ".join(_Parsed(text).text.split())


def test_the_first_sentence_is_the_verdict_with_its_error_rates():
    text = flat(page(content()))
    assert "2 of 20 images are copies of training images; at most 12.34% of all are copies" in text
    assert "0.001 are flagged, at most 0.004 (95 %)" in text
    assert "198 of 200 planted copies" in text
    assert "1 of 10 subjects are copied" in text
    assert "Nothing: every image that was listed was read and has a verdict." in text


def test_a_run_that_is_not_complete_is_never_clean():
    counts = summary()["counts"] | {"duplicate": 0, "rejected": 3}
    text = flat(page(content([], complete=False, counts=counts)))
    assert "Incomplete, so this is no clean result. No copy was found among 20 images" in text
    assert "3 synthetic images could not be read" in text
    assert "No image is flagged." in text


@given(st.floats(0, 1), st.integers(0, 3))
def test_a_bound_that_is_told_is_one(share, digits):
    """Of 30,000 images without a flagged one at most 0.00% were said to be copies."""
    told = [float(bound(share, digits).removesuffix("%")) for bound in (at_least, at_most)]
    assert told[0] <= 100 * share * (1 + 1e-12)
    assert told[1] >= 100 * share * (1 - 1e-12)
    assert told[1] - told[0] <= 10**-digits + 1e-9


@given(st.floats(0, 1))
def test_the_bound_of_a_rate_that_is_told_is_one(rate):
    told = rate_at_most(rate)
    assert rate * (1 - 1e-12) <= float(told) <= 1.1 * rate
    assert told == f"{float(told):.2g}"


def test_a_small_bound_is_not_told_as_none():
    counts = summary()["counts"] | {"duplicate": 0, "judged": 30_000}
    text = flat(page(content([], counts=counts, most_copies_95=1 / 30_000)))
    assert "at most 0.01% of all are copies" in text
    found = summary()["search"] | {"passed": False}
    missed = found | {"sample": found["sample"] | {"recall_at_least_95": 0.98996}}
    assert "at least 98.99% (95 %). That is less than the 99.00% asked for" in flat(
        page(content(search=missed))
    )


def test_sets_that_do_not_go_together_have_no_clean_verdict():
    """And that is said before the verdict."""
    counts = summary()["counts"] | {"duplicate": 0}
    text = flat(page(content([], counts=counts)))
    assert text.index("One is near all. Look at it.") < text.index("No copy was found among")
    assert "in two sets that do not go together." in text
    assert 'class="verdict unsure"' in page(content([], counts=counts))
    assert 'class="verdict good"' in page(content([], counts=counts, mismatches=[]))


def test_a_set_with_undecidable_images_has_no_clean_verdict():
    """The page was green, and said that at most 0 % are copies."""
    counts = summary()["counts"] | {"duplicate": 0, "different": 14, "undecidable": 3}
    text = page(content([], counts=counts, mismatches=[]))
    assert 'class="verdict unsure"' in text
    first = flat(text).partition("What was not judged")[0]
    assert "Undecidable: 3 images have next to nothing on them" in first
    one = counts | {"undecidable": 1}
    assert "Undecidable: 1 image has next" in flat(page(content([], counts=one)))


@pytest.mark.parametrize("count", [20, 21])
def test_a_table_that_is_cut_says_where_all_rows_are(count):
    """Of 50 subjects who are copied 20 were shown, and nothing said that there are more."""
    findings = [match(number, subject=f"p{number}") for number in range(count)]
    volumes = [replace(VOLUMES[0], synthetic=f"v{number}.nii") for number in range(count)]
    whole = replace(content(findings), volumes=volumes)
    text = flat(page(whole))
    for file in ("subjects.parquet", "volumes.parquet"):
        assert (f"The first 20 are here; {file} has all." in text) == (count > 20)


def test_copies_of_a_part_are_told_beside_the_verdict():
    counts = summary()["counts"] | {"duplicate": 0}
    first, _, rest = flat(page(content([], counts=counts))).partition("What was not judged")
    assert "1 image that is no copy has a region that is like one subject alone." in first
    assert "By chance 1.0 of 100 are expected" in rest
    none = page(content(partial=summary()["partial"] | {"flagged": 0}))
    assert "region" not in flat(none).partition("What was not judged")[0]


def test_without_a_known_rate_no_verdict_is_clean():
    counts = summary()["counts"] | {"duplicate": 0}
    shown = {"counts": counts, "mismatches": []}
    of_others = summary()["calibration"] | {"non_members": {"from": "bundled"}}
    for calibration in (None, of_others):
        text = page(content([], calibration=calibration, **shown))
        assert 'class="verdict unsure"' in text
        assert "how often the verdicts are wrong is not known" in flat(text)


@pytest.mark.parametrize(
    ("training", "flagged", "unnamed", "told"),
    [
        (30, 12, 0, "12 of 30 subjects are copied."),
        (30, 130, 100, "30 of 30 subjects are copied, and 100 training images whose subject is"),
        (0, 4, 4, "4 training images are copied. No subjects are told apart."),
        (0, 4, 3, "1 subjects are copied, and 3 training images whose subject is not known."),
    ],
)
def test_an_image_of_nobody_known_is_not_counted_as_a_subject(training, flagged, unnamed, told):
    """130 of 30 subjects were said to be copied."""
    subjects = {"training": training, "flagged": flagged, "unnamed": unnamed}
    assert told in flat(page(content(subjects=subjects)))


def test_a_run_without_a_rate_says_so():
    without = {"calibration": None, "canaries": None, "most_copies_95": None}
    text = flat(page(content(**without)))
    assert "how often the verdicts are wrong is not known" in text
    bundled = summary()["calibration"]
    bundled = bundled | {"non_members": bundled["non_members"] | {"from": "bundled"}}
    assert "a calibration of pseudo-subjects" in flat(page(content(calibration=bundled)))


def test_how_a_copy_was_changed_is_said_in_words():
    assert "flipped horizontally, turned 5.0°, shifted 0.0 right, 2.0 down, quarter turn" in flat(
        page(content())
    )


HOSTILE = [
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "<!--",
    "'; alert(1); '",
    "\u202egnp.exe",
]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=30)))
def test_a_name_is_shown_and_is_nothing_else(name):
    plain = _Parsed(page(content([match(0)]))).elements
    text = page(content([match(0, synthetic=name, training=name, subject=name)]))
    found = _Parsed(text)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain]
    data = re.search(r'id="findings-data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)["rows"][0][1:4] == [name, name, name]


def test_the_policy_of_the_page_lets_its_own_script_and_style_run_alone():
    text = page(content())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; connect-src 'none';")
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for tag, attributes in _Parsed(text).elements:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, value)


def test_the_page_of_one_run_is_the_same_but_for_the_time_in_one_place():
    first, second = (page(content(made=made)) for made in ("2026-01-02", "2027-03-04"))
    assert first != second
    assert first.replace("Made 2026-01-02.", "") == second.replace("Made 2027-03-04.", "")
    assert first.count("2026-01-02") == 1


def test_a_page_stays_small_and_says_what_is_beside_it():
    findings = [match(number, synthetic=f"{'long' * 20}/{number}.png") for number in range(40_000)]
    text = page(content(findings))
    assert len(text.encode()) < 10_000_000
    told = re.search(r"The ([\d,]+) strongest are here; flagged.csv has all.", text)
    shown = int(told[1].replace(",", ""))
    data = re.search(r'id="findings-data">(.*?)</script>', text, re.DOTALL)[1]
    assert len(json.loads(data)["rows"]) == shown
    assert 10_000 < shown < 40_000


def test_pictures_are_in_the_page_only_where_they_are_given():
    assert 'class="pictures"' not in page(content())
    found = Pictures(b"one", b"two", b"three")
    text = page(replace(content(), pictures=[found, None]))
    assert "Pictures of patients are not in this page." not in text
    assert text.count(f"data:image/png;base64,{base64.b64encode(b'one').decode()}") == 2
    large = Pictures(*[b"x" * 400_000] * 3)
    many = replace(content([match(n) for n in range(50)]), pictures=[large] * 50)
    text = page(many)
    assert len(text.encode()) < 20_000_000
    assert "The first 2 have pictures." in text


def test_pseudonyms_hide_every_name_and_depend_on_the_key():
    findings = [match(0), match(1, training="p2/b.png", subject="p2")]
    one, again, other = (page(content(findings).renamed(key)) for key in (b"key", b"key", b"other"))
    assert one == again != other
    for name in ("00000.png", "00001.png", "p1/a.png", "p2/b.png", ">p1<", ">p2<"):
        assert name in page(content(findings))
        assert name not in one
    assert len(set(re.findall("subject-[0-9a-f]{12}", one))) == 2
    assert len(set(re.findall("finding-[0-9a-f]{12}", one))) == 2
    for each in findings:
        assert (each.finding in page(content(findings)), each.finding in one) == (True, False)
    columns = {"patient": {"values": 1, "most": [{"value": "Jane", "flagged": 1, "images": 2}]}}
    found = content(findings, provenance=columns)
    assert ">Jane<" in page(found)
    assert "Jane" not in page(found.renamed(b"key"))


def test_findings_by_hand_are_counted_as_they_are():
    values = [0.0, 1.0, 5.0, 99.0]

    class _Rule:
        bounds = type("Bounds", (), {"similar": 0.6, "duplicate": 0.85})

    found = Distributions.of(values, _Rule())
    assert (found.what, sum(found.synthetic), found.non_members) == ("score", 4, [0] * 60)
    assert found.edges[0] <= 0.6
    assert found.edges[-1] >= 0.85


def test_distributions_are_read_as_they_were_written(tmp_path):
    SHOWN.write(tmp_path)
    assert Distributions.read(tmp_path) == SHOWN
