"""The catalogue's own columns: kept, returned, filtered by, grouped by; conditions that are refused."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import oclear
from retrieval.index.fields import FieldFilter
from retrieval.index.search import SearchOptions, json_ready
from tests.support.tiny_retrieval import TinyTask, call, drawing

ROWS = 60
DOCUMENTS = pa.table({"doc_id": [f"d{row}" for row in range(ROWS)], "text": ["red Mug"] * ROWS, "leaf": [None] * ROWS})
FIELDS = pa.table(
    {
        "price": pa.array([float(row) if row % 7 else None for row in range(ROWS)]),
        "Brand": ["x" if row % 2 else "o'y" for row in range(ROWS)],
        "day": pa.array(range(ROWS), pa.date32()),
        "tags": [["a", "b"] if row % 3 else [] for row in range(ROWS)],
        "a b": range(ROWS),
    }
)


@pytest.fixture(scope="module")
def conditions() -> FieldFilter:
    return FieldFilter(DOCUMENTS, FIELDS)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("price < 9 and brand = 'x'", [1, 3, 5]),
        ("BRAND = 'o''y' and price between 2 and 5", [2, 4]),
        ("price is null and doc_id in ('d7', 'd8')", [7]),
        ("not (price > 3)", [1, 2, 3]),  # an unknown price does not match either way
        ("day >= date '1970-01-05' and day < '1970-01-07'", [4, 5]),
        ("lower(text) like '%mug' and price = 4", [4]),
        ("list_contains(tags, 'a') and \"a b\" < 5", [1, 2, 4]),
        ("price * 2 + 1 = 11 or starts_with(doc_id, 'd59')", [5, 59]),
        ("price::int = 3 -- a comment", [3]),
        ("true and 2 > 3", []),
        ("day >= timestamp '1970-03-01'", [59]),
    ],
)
def test_a_condition_selects_the_rows_for_which_it_is_true(
    conditions: FieldFilter, where: str, rows: list[int]
) -> None:
    assert np.flatnonzero(conditions.matching(where)).tolist() == rows


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", "is no condition"),
        ("price <", "is no condition"),
        ("true; drop table documents", "is no condition"),
        ("(" * 900 + "1" + ")" * 900, "where"),
        ("price < 1 or " * 200 + "true", "at most 2,000"),
        ("prise < 3", "Did you mean 'price'"),
        ('brand = "x"', "single quotes"),
        ("documents.price < 3", "without 'documents'"),
        ("brand < 3", "Cannot compare"),
        ("price > 'abc'", "Could not convert"),
        ("price in (select 1)", "is not allowed"),
        ("exists (select 1)", "is not allowed"),
        ("read_text('/etc/passwd') = 'x'", "is not allowed"),
        ("getenv('HOME') = 'x'", "is not allowed"),
        ("regexp_matches(text, '(a+)+$')", "is not allowed"),
        ("repeat('a', 1000000000) = 'b'", "is not allowed"),
        ("count(*) > 1", "is not allowed"),
        ("price < ?", "is not allowed"),
        ("*", "is not allowed"),
    ],
)
def test_anything_else_is_refused_with_its_reason(conditions: FieldFilter, where: str, reason: str) -> None:
    with pytest.raises(ValueError, match="where") as caught:
        conditions.matching(where)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500


def test_names_that_differ_in_case_are_told_apart() -> None:
    fields = pa.table({"price": [1, 2], "Price": [9, 9], "Doc_ID": [5, 6], "row": [7, 8], "select": [1, 1]})
    found = FieldFilter(DOCUMENTS.slice(0, 2), fields)
    for where in ("price < 2", '"price" < 2', "doc_id = 'd0'", '"Doc_ID" = 5', "row = 7", '"select" = 1 and price = 1'):
        assert np.flatnonzero(found.matching(where)).tolist() == [0], where
    with pytest.raises(ValueError, match="'PRICE' may be price or Price"):
        found.matching("PRICE < 2")


def test_equal_values_have_one_code_and_missing_ones_stand_alone(conditions: FieldFilter) -> None:
    codes = conditions.group_codes("Brand")
    assert len(set(codes.tolist())) == 2
    assert len(set(conditions.group_codes("price").tolist())) == ROWS
    with pytest.raises(ValueError, match="group_by 'nix': there is no such column; the index has doc_id"):
        conditions.group_codes("nix")


def test_values_become_what_json_can_hold() -> None:
    value = {"day": datetime.date(2026, 1, 31), "prices": [1.5, float("nan")], "n": 3, "none": None}
    assert json_ready(value) == {"day": "2026-01-31", "prices": [1.5, None], "n": 3, "none": None}


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"k": 0}, "k is 0"), ({"fold": 0.0}, "fold is 0.0"), ({"fold": 2.0}, "fold")]
)
def test_options_without_sense_are_refused(wrong: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SearchOptions(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shop(task: TinyTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogue with a price, a product number and a column of bytes."""
    rows = pa.parquet.read_table(task.table("catalogue"))
    count = len(rows)
    rows = rows.append_column("price", pa.array(np.arange(count) / 2))
    rows = rows.append_column("product", pa.array([name.split("-")[0] for name in rows.column("doc_id").to_pylist()]))
    rows = rows.append_column("raw", pa.array([b"x"] * count))
    path = tmp_path_factory.mktemp("shop") / "catalogue.parquet"
    pa.parquet.write_table(rows, path)
    return path


def test_answers_carry_the_columns_of_the_catalogue(
    task: TinyTask, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    assert call("index", "--model", task.model, "--catalogue", shop, "--out", tmp_path / "index") == 0
    drawing("red", "box").save(tmp_path / "one.png")
    words = ["search", "--model", task.model, "--index", tmp_path / "index", "--image", tmp_path / "one.png", "--k", 5]
    capsys.readouterr()
    assert call(*words, "--where", "price < 9 and product <> 'x'", "--group-by", "product") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5
    assert all(set(line["fields"]) == {"price", "product"} and line["fields"]["price"] < 9 for line in lines)
    assert len({line["fields"]["product"] for line in lines}) == 5
    assert call(*words, "--where", "prize < 9") == 2
    assert "Did you mean 'price'" in capsys.readouterr().err


def test_groups_filters_and_folds_equal_what_the_whole_ranking_says(task: TinyTask, shop: Path) -> None:
    model = oclear.load(task.model)
    index = model.index(shop)
    picture = drawing("teal", "wedge")
    everything = index.search(picture, k=999).to_pandas()
    assert list(everything.columns[-2:]) == ["price", "product"]
    cheap = index.search(picture, k=6, where="price < 5").to_pandas()
    expected = everything[everything.price < 5].head(6)
    assert cheap.doc_id.tolist() == expected.doc_id.tolist()
    assert cheap.score.tolist() == pytest.approx(expected.score.tolist(), abs=1e-6)
    grouped = index.search(picture, k=20, group_by="product").to_pandas()
    assert grouped.doc_id.tolist() == everything.drop_duplicates("product").head(20).doc_id.tolist()
    few = index.search(picture, k=20, where="price < 1").to_pandas()
    assert len(few) == 2
    none = index.search(picture, k=20, where="price < 0", group_by="product")
    assert none.to_list() == []

    folded = index.search(picture, k=999, fold=0.9999).to_pandas()
    units = index.index.searcher.vectors()[:, : model.width]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    place = {name: row for row, name in enumerate(index.index.doc_ids)}
    cosine = units[[place[name] for name in everything.doc_id]] @ units[[place[name] for name in everything.doc_id]].T
    kept: list[int] = []
    for row in range(len(everything)):
        if not kept or cosine[row, kept].max() < 0.9999:
            kept.append(row)
    assert 1 < len(kept) < len(everything)
    assert folded.doc_id.tolist() == everything.doc_id[kept].tolist()
    assert sum(len(names) for names in folded.same) == len(everything) - len(kept)


def test_all_groups_are_found_even_behind_a_large_one(
    task: TinyTask, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retrieval.index import search

    model = oclear.load(task.model)
    index, picture = model.index(shop), drawing("teal", "wedge")
    expected = [hit["doc_id"] for hit in index.search(picture, k=25, group_by="product").to_list()]
    monkeypatch.setattr(search, "MOST_LOOKED_AT", 4)
    assert [hit["doc_id"] for hit in index.search(picture, k=25, group_by="product").to_list()] == expected


def test_a_catalogue_without_columns_of_its_own_has_answers_without_fields(task: TinyTask) -> None:
    [line] = oclear.load(task.model).index(task.table("catalogue")).search(drawing("red", "box"), k=1).to_list()
    assert list(line) == ["query", "rank", "doc_id", "score", "text", "leaf"]
