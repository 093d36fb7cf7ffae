"""The record of a release: filled by what the night knows, gaps visible."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_audit import CONFIG, audited, first_night, plant, root, waive  # noqa: F401 - fixtures
from test_page import flat

from deepssim_scan.audit.config import audit as configuration
from deepssim_scan.audit.config.audit import read_config
from deepssim_scan.audit.dossier import dossier_page, sections_of
from deepssim_scan.audit.history import History
from deepssim_scan.errors import InputError

STATED = """
[dossier]
purpose = "<b>open</b> data"
recipient = "the public"
signer = "the privacy officer"
"""


def record(root):  # noqa: F811
    config = read_config(root / "audit.toml")
    with History(root / "audits") as history:
        night = history.nights()[-1]
        sections = sections_of(config, history, night)
        return dossier_page(config, history), {
            (section.title, field.name): field.text
            for section in sections
            for field in section.fields
        }


def test_what_the_night_knows_is_filled_and_gaps_are_shown(root):  # noqa: F811
    (root / "audit.toml").write_text(CONFIG + STATED)
    plant(root, "s03", "copy.png")
    found = audited(root)
    key = found.sets[0].findings[0].key
    with History(root / "audits") as history:
        history.decide(key, "A", "copy", blinded=True)
        history.decide(key, "B", "no copy", blinded=True)
    waive(root, key, "2090-01-01")
    page, fields = record(root)
    assert fields["Results: first", "Images flagged"] == "1 (25.00%)"
    assert fields["Results: second", "Images flagged"] == "0 (0.00%)"
    assert "1 findings" in fields["Results: first", "Worst subject"]
    assert fields["Decision", "Findings reviewed"] == "1 of 1 by 2 readers; 1 called a copy"
    assert fields["Decision", "Agreement of readers"] == "A and B: 0 of 1, kappa 0.00"
    assert fields["Decision", "Policy"].startswith("failed: fail if duplicates > 0; complete")
    assert fields["Scope", "Recipient"] == "the public"
    digest = found.sets[0].summary["fingerprints"]["synthetic"]
    assert fields["Scope", "Released set first, digest"] == digest
    gaps = [name for name, text in fields.items() if text is None]
    assert ("Threat model", "What was tried") in gaps
    text = flat(page)
    assert f"{len(gaps)} fields are not filled." in text
    assert text.count("NOT STATED") == len(gaps)
    assert "<b>open" not in page
    assert "&lt;b&gt;open&lt;/b&gt; data" in page


def test_why_a_set_was_not_audited_names_nothing_under_pseudonyms(root):  # noqa: F811
    (root / "generated" / "first").rename(root / "DOE^JOHN")
    (root / "generated" / "first").symlink_to(root / "DOE^JOHN" / "40.png")
    (error,) = audited(root).errors.values()
    page, fields = record(root)
    assert fields["Results: first", "NOT AUDITED"] == error
    (root / "names.key").write_bytes(bytes(range(32)))
    (root / "audit.toml").write_text(CONFIG + '[report]\npseudonyms = "names.key"\n')
    page, fields = record(root)
    told = "could not be queried; night.json says why, and may name an image"
    assert fields["Results: first", "NOT AUDITED"] == told
    assert str(root) not in page


def test_what_keeps_a_result_from_being_clean_is_in_the_record(root, tmp_path):  # noqa: F811
    config, unfit = read_config(root / "audit.toml"), "Synthetic images are less sharp."
    with History(root / "audits") as kept, History(tmp_path / "h", begin=True) as history:
        (old,), (night, _) = kept.nights(), history.begin()
        for each, undecidable in zip(kept.sets(old), (0, 3), strict=True):
            counts = each.summary["counts"] | {"undecidable": undecidable, "rejected": 0}
            found = [{"code": "sharpness_differs", "text": unfit, "advice": ""}] * undecidable
            told = {"counts": counts, "mismatches": found[:1], "ignored": 0, "excluded": 0}
            history.put(night, replace(each, summary=each.summary | told))
        night = replace(night, finished=old.finished, state=old.state, facts=old.facts)
        history.finish(night)
        fields = {
            (section.title, field.name): field.text
            for section in sections_of(config, history, night)
            for field in section.fields
        }
    first, second = (
        [
            fields[f"Results: {name}", field]
            for field in ("Not judged, or not compared", "What does not go together")
        ]
        for name in ("first", "second")
    )
    assert first == ["nothing", "nothing was noticed"]
    assert second[0].startswith("3 images have next to nothing on them")
    assert second[1] == unfit


def test_a_record_without_gaps_says_nothing_of_them(root):  # noqa: F811
    names = re.findall(r"^    (\w+): str \| None = None$", _source(), re.MULTILINE)
    lines = "\n".join(f'{name} = "x"' for name in names)
    (root / "audit.toml").write_text(f"{CONFIG}\n[dossier]\n{lines}\n")
    audited(root)
    page, fields = record(root)
    assert [name for name, text in fields.items() if text is None] == []
    assert "not filled" not in flat(page)
    assert fields["Decision", "Agreement of readers"] == "no findings"


def _source():
    text = Path(configuration.__file__).read_text()
    return text[text.index("class Dossier") : text.index("class Machine")]


def test_what_was_left_blank_is_a_gap_and_a_waiver_that_expired_is_nobodys(root):  # noqa: F811
    (root / "audit.toml").write_text(f'{CONFIG}\n[dossier]\npurpose = " "\nsigner = ""\n')
    plant(root, "s03", "copy.png")
    key = audited(root).sets[0].findings[0].key
    waive(root, key, "2020-01-01")
    audited(root)
    _, fields = record(root)
    assert fields["Scope", "Purpose of the release"] is None
    assert fields["Decision", "Signer"] is None
    assert fields["Decision", "Waivers"] == "0"


def test_the_hold_out_is_that_of_the_night_and_not_of_the_configuration(root, people):  # noqa: F811
    text = CONFIG.replace('index = "index"', 'index = "index"\nholdout = "holdout"')
    (root / "audit.toml").write_text(text)
    assert record(root)[1]["Scope", "Hold-out set"] == "none"
    for number in range(46, 59):
        shutil.copytree(people / "training" / f"s{number}", root / "holdout" / f"s{number}")
    audited(root)
    (root / "audit.toml").write_text(CONFIG)
    told = record(root)[1]["Scope", "Hold-out set"]
    assert re.fullmatch(r"[0-9a-f]{64} \(of names, sizes and times\)", told)


def test_without_a_night_there_is_no_record(root):  # noqa: F811
    config = read_config(root / "audit.toml")
    with (
        History(root / "other", begin=True) as history,
        pytest.raises(InputError, match="holds no finished night"),
    ):
        dossier_page(config, history)
