"""The HTML report is self-contained and escapes all text of the data."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from data_governance.grouping import matching
from data_governance.reports import report
from data_governance.stage import DECISIONS, StageResult
from tests.support.synthetic_shop import IMAGE, png

HEADINGS = (
    "Rows",
    "Decisions by stage and reason",
    "Stages",
    "Noise of the labels",
    "Before and after",
    "Head, body and tail",
    "Categories",
    "Rejected, and why",
    "Merged",
    "Relabelled",
    "Overrides",
)


def page_of(governed: Path, target: Path) -> str:
    assert main(["report", "--governed", str(governed), "--html", str(target)]) == 0
    return target.read_text()


def test_the_report_is_self_contained_and_shows_images(governed: Path, tmp_path: Path) -> None:
    text = page_of(governed, tmp_path / "report.html")
    assert "http" not in text
    assert "data:image/jpeg;base64," in text
    assert len(text) < 3_000_000
    assert [part.split("</h2>")[0] for part in text.split("<h2>")[1:]] == list(HEADINGS)


def add_decisions(governed: Path, stage: str, result: StageResult) -> None:
    """Append to the decisions of a stage, and to the ledger, as a run would have."""
    rows = pa.Table.from_pylist([{**row, "stage": stage} for row in result.decisions], schema=DECISIONS)
    for path in (governed / "stages" / stage / "decisions.parquet", governed / "ledger.parquet"):
        pq.write_table(pa.concat_tables([pq.read_table(path), rows]), path)


def test_dropped_merged_and_relabelled_rows_have_reasons_and_images(governed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "governed"
    shutil.copytree(governed, mine)
    samples = pq.read_table(mine / "samples", columns=["sample_id", "side"]).to_pylist()
    query = next(row["sample_id"] for row in samples if row["side"] == "query")
    first, second = [row["sample_id"] for row in samples if row["side"] == "document"][:2]
    merged, moved, decided = StageResult(), StageResult(), StageResult()
    merged.decide("catalogue", [first], "merged", "near_duplicate", into=second)
    moved.decide("queries", [query], "relabelled", "prototype_and_neighbours_agree", margin=-0.3)
    decided.decide("queries", [query], "relabelled", "<b>mine</b> & yours", action="relabel")
    for stage, result in (("dedupe", merged), ("clean", moved), ("overrides", decided)):
        add_decisions(mine, stage, result)
    rejected = {
        **{name: [value] for name, value in zip(DECISIONS.names, ("queries", "q?", "dropped"), strict=False)},
        "stage": ["organise"],
        "reason": ["ambiguous"],
        "figures": [json.dumps({"lead": 0.05, "candidate": first, "other_candidate": second})],
        "image": pa.array([{"bytes": png(3, style="filled"), "path": None}], IMAGE),
        "text": [""],
    }
    pq.write_table(pa.table(rejected), mine / "dropped" / "queries.parquet")
    text = page_of(mine, tmp_path / "report.html")
    part = {piece.split("</h2>")[0]: piece for piece in text.split("<h2>")[1:]}
    assert "queries: ambiguous, 1 rows" in part["Rejected, and why"]
    assert part["Rejected, and why"].count("<img") == 3
    assert "lead 0.05" in part["Rejected, and why"]
    assert "near_duplicate" in part["Merged"]
    assert part["Merged"].count("<img") == 2
    assert part["Relabelled"].count("<img") == 2
    assert "&lt;b&gt;mine&lt;/b&gt; &amp; yours" in part["Overrides"]
    assert "<b>mine" not in text


@pytest.mark.parametrize(
    ("notes", "text"),
    [
        ({"wrong_labels": 0.123, "wrong_labels_interval": [0.1, 0.15]}, "12.3% are wrong, interval 10.0% to 15.0%"),
        ({"wrong_labels": None, "method": "otsu"}, "No estimate: the margins do not show two modes (cut by otsu)"),
    ],
)
def test_label_noise_has_an_interval_or_a_reason_for_none(notes: dict[str, object], text: str) -> None:
    assert text in report.label_noise(notes)


def test_clicks_outside_their_category_have_an_interval(large_governed: Path, tmp_path: Path) -> None:
    text = re.search(
        r"clicked pairs, ([\d.]+)% lie outside .*?interval ([\d.]+)% to ([\d.]+)%",
        page_of(large_governed, tmp_path / "r.html"),
    )
    assert text is not None
    share, low, high = map(float, text.groups())
    assert low < share < high
    assert low < 20 < high  # the true share of wrong clicks
    assert report.click_noise({}) == ""


def test_the_share_of_clicks_outside_equals_a_case_worked_by_hand() -> None:
    edges, best, group = np.array([[0, 0], [0, 1], [1, 1], [2, 0]]), np.array([0, 1, 1]), np.array([0, 1])
    # outside: one of two, none of one, one of one; r = 1/2, deviation sqrt(0 + 1/4 + 1/4) / 4
    found = matching.clicks_outside(edges, best, group)
    assert found["clicks_outside"] == 0.5
    assert found["clicks_outside_interval"] == pytest.approx(
        [0.5 - 1.96 * 0.5**0.5 / 4, 0.5 + 1.96 * 0.5**0.5 / 4], abs=1e-4
    )


def test_an_unfinished_folder_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--governed", str(tmp_path), "--html", str(tmp_path / "r.html")]) == 2
    assert "no ledger.json there" in capsys.readouterr().err
