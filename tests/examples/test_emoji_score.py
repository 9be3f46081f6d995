"""Governance metrics of the emoji data, each calculated by hand."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.emoji.score import (
    Governed,
    Truth,
    category_pairs,
    governance_score,
    label_accuracy,
    main,
    majority_truth,
)

DOCUMENTS = {"a1": "ant", "a2": "ant", "b1": "bee", "b2": "bee", "c1": "cat"}
EVENTS = {"q1": "ant", "q2": "ant", "q3": "bee", "q4": "cat", "q5": "cat"}
# category 0 holds both ants and one bee, category 1 one bee, category 2 no document; c1 and q5 were left out
GOVERNED = Governed({"q1": 0, "q2": 1, "q3": 1, "q4": 2}, {"a1": 0, "a2": 0, "b1": 0, "b2": 1})


def test_truth_of_a_category_is_the_majority_of_its_documents() -> None:
    assert majority_truth(GOVERNED.documents, DOCUMENTS) == {0: "ant", 1: "bee"}


def test_tie_goes_to_the_smaller_name() -> None:
    assert majority_truth({"b1": 7, "a1": 7}, DOCUMENTS) == {7: "ant"}


def test_label_accuracy_counts_a_category_without_documents_as_wrong() -> None:
    # q1 right (ant), q2 wrong (bee), q3 right (bee), q4 wrong (no document): 2 of 4
    assert label_accuracy(GOVERNED, Truth(EVENTS, DOCUMENTS, [])) == 0.5


def test_pairs_are_counted_over_the_full_training_catalogue() -> None:
    # predicted pairs: a1a2, a1b1, a2b1; true pairs: a1a2, b1b2; both: a1a2
    found = category_pairs(GOVERNED.documents, DOCUMENTS)
    assert found.precision == pytest.approx(1 / 3)
    assert found.recall == pytest.approx(1 / 2)
    assert found.f1 == pytest.approx(2 / 5)


def test_missing_document_lowers_recall_only() -> None:
    found = category_pairs({"a1": 0, "a2": 0}, DOCUMENTS)
    assert (found.precision, found.recall) == (1.0, 0.5)


def test_score_without_pairs_is_zero() -> None:
    assert category_pairs({}, {}).f1 == 0.0
    empty = governance_score(Governed({}, {}), Truth({}, {}, []))
    assert set(empty.values()) == {0}


def test_governance_score_counts_events_clicks_and_documents() -> None:
    found = governance_score(GOVERNED, Truth(EVENTS, DOCUMENTS, [True, True, True, False]))
    assert (found["rows_in"], found["kept"], found["dropped"]) == (5, 4, 1)
    assert found["kept_share"] == pytest.approx(0.8)
    assert found["label_accuracy_before"] == pytest.approx(0.75)
    assert found["documents_per_category"] == pytest.approx(4 / 3)
    assert found["truth_documents_per_category"] == pytest.approx(5 / 3)


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def make_folders(folder: Path, samples: dict[str, list[Any]]) -> list[str]:
    data, governed = folder / "data", folder / "governed"
    names = list(DOCUMENTS.values())
    twins = ["ant" if name == "bee" else name for name in names]
    write(data / "truth/catalogue.parquet", {"doc_id": list(DOCUMENTS), "category": names, "twins": twins})
    write(data / "truth/queries.parquet", {"query_id": list(EVENTS), "category": list(EVENTS.values())})
    write(data / "truth/clicks.parquet", {"right": [True, False]})
    write(data / "queries.parquet", {"query_id": list(EVENTS)})
    write(data / "train_catalogue.parquet", {"doc_id": list(DOCUMENTS)})
    write(governed / "samples/part-0.parquet", samples)
    return ["--data", str(data), "--governed", str(governed), "--out", str(folder / "out/governance.json")]


def samples() -> dict[str, list[Any]]:
    rows = [("document", *pair) for pair in GOVERNED.documents.items()]
    rows += [("query", *pair) for pair in GOVERNED.events.items()]
    side, sample, category = (list(column) for column in zip(*rows, strict=True))
    return {"side": side, "sample_id": sample, "category_id": category}


def test_command_scores_twins_as_separate_and_as_merged_categories(tmp_path: Path) -> None:
    assert main(make_folders(tmp_path, samples())) == 0
    found = json.loads((tmp_path / "out/governance.json").read_text())
    # with bee = ant: both categories are "ant", q1, q2, q3 are right; pairs: 3 predicted, 6 true, 3 both
    assert found["merged"]["label_accuracy_after"] == 0.75
    assert found["merged"]["category_pair_f1"] == pytest.approx(2 / 3)
    assert found["label_accuracy_after"] == 0.5
    assert found["category_pair_f1"] == pytest.approx(2 / 5)
    assert found["kept_share"] == found["merged"]["kept_share"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("sample_id", "zz", "'zz' is not in the data"), ("side", "page", "side 'page'")],
)
def test_samples_of_other_data_are_rejected_with_their_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str, message: str
) -> None:
    wrong = samples()
    wrong[column][0] = value
    assert main(make_folders(tmp_path, wrong)) == 2
    assert message in capsys.readouterr().err


def test_missing_folder_and_missing_column_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = samples()
    del lacking["category_id"]
    words = make_folders(tmp_path, lacking)
    assert main(words) == 2
    assert "lacks the columns ['category_id']" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "nowhere"), *words[4:]]) == 2
    assert "is missing" in capsys.readouterr().err
