"""Flagged images are counted by what the manifest says of them."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import drawn
from PIL import Image

from deepssim_scan.ingest.config import IngestConfig, RunContext
from deepssim_scan.ingest.config.selection import Selection
from deepssim_scan.jobs.config import QueryConfig
from deepssim_scan.jobs.query import query
from deepssim_scan.matching.config import CanaryConfig
from deepssim_scan.reporting.provenance import MOST, provenance

PATHS = st.sampled_from(["a", "b", "c", "d"])


@given(
    st.dictionaries(PATHS, st.fixed_dictionaries({"seed": st.sampled_from("123"), "x": st.text()})),
    st.lists(PATHS),
    st.data(),
)
def test_every_image_is_counted_once_in_every_column(columns, judged, data):
    flagged = judged[: data.draw(st.integers(0, len(judged)))]
    found = provenance(columns, judged, flagged)
    assert found.keys() == ({"seed", "x"} if columns else set())
    for column in found.values():
        if column["values"] <= MOST:
            assert sum(each["images"] for each in column["most"]) == len(judged)
            assert sum(each["flagged"] for each in column["most"]) == len(flagged)
        order = [each["flagged"] for each in column["most"]]
        assert order == sorted(order, reverse=True)
    for each in found.get("seed", {"most": []})["most"]:
        of_seed = [
            path for path in judged if columns.get(path, {}).get("seed", "") == each["value"]
        ]
        assert each["images"] == len(of_seed)


def test_a_query_says_which_seed_gives_the_copies(people, tmp_path):
    rows = []
    for number in range(6):
        path = tmp_path / "synthetic" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        source = people / "training" / f"s{number:02d}" / "1.png"
        image = Image.open(source).rotate(3) if number < 3 else Image.fromarray(drawn(number, 64))
        image.save(path)
        rows.append([path.name, "P", 17 if number in (0, 1, 5) else 4, "<b>a prompt</b>"])
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "subject", "seed", "prompt"], *rows])
    ingest = IngestConfig(Selection(manifest=tmp_path / "m.csv"))
    with pytest.raises(Exception, match="names subjects"):
        query(tmp_path / "synthetic", people / "index", tmp_path / "r", QueryConfig(ingest))
    text = (tmp_path / "m.csv").read_text().replace(",subject,", ",whose,")
    (tmp_path / "m.csv").write_text(text)
    config = QueryConfig(ingest, canaries=CanaryConfig(0))
    run = RunContext("cpu", workers=0)
    query(tmp_path / "synthetic", people / "index", tmp_path / "report", config, run)
    found = json.loads((tmp_path / "report" / "summary.json").read_text())["provenance"]
    assert found["seed"] == {
        "values": 2,
        "most": [
            {"value": "17", "flagged": 2, "images": 3},
            {"value": "4", "flagged": 1, "images": 3},
        ],
    }
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Flagged images by seed" in page
    assert "&lt;b&gt;a prompt&lt;/b&gt;" in page
