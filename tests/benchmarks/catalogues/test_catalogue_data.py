"""Folders of cells: formats that users bring, unseen categories, noise, texts, artists."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.catalogues.build import build
from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.domain import confusable
from benchmarks.catalogues.pictures import Job, document_picture, query_picture
from benchmarks.catalogues.plan import make_plan
from examples.emoji.vocabulary import WORD, is_label_word
from tests.support.small_domain import shape, small_domain

CELL = Cell(categories=40, test_categories=8, documents=(1, 3), pictures=2.0, clicks=3.0, noise=0.3, leaf=True)
COLUMNS = {
    "behaviour": {"query_id", "doc_id", "clicks", "position", "impressions", "at"},
    "queries": {"query_id", "image"},
    "catalogue": {"doc_id", "image", "text", "leaf"},
    "test_queries": {"query_id", "image"},
    "test_qrels": {"query_id", "doc_id", "relevance"},
    "seen_queries": {"query_id", "image"},
    "seen_qrels": {"query_id", "doc_id", "relevance"},
}
DOMAIN = small_domain()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cells") / "cell"
    build(CELL, DOMAIN, out, workers=1)
    return out


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def truth(folder: Path, name: str, key: str, value: str = "category") -> dict[str, str]:
    return {row[key]: row[value] for row in rows(folder, f"truth/{name}")}


def test_tables_have_the_documented_columns(folder: Path) -> None:
    for name, columns in COLUMNS.items():
        assert set(pq.read_schema(folder / f"{name}.parquet").names) == columns


def test_leaf_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    build(replace(CELL, leaf=False), DOMAIN, tmp_path / "cell", workers=1)
    assert set(pq.read_schema(tmp_path / "cell/catalogue.parquet").names) == {"doc_id", "image", "text"}


def test_test_categories_are_in_the_catalogue_and_never_in_the_behaviour(folder: Path) -> None:
    category, role = truth(folder, "catalogue", "doc_id"), truth(folder, "catalogue", "doc_id", "role")
    clicked = {row["doc_id"] for row in rows(folder, "behaviour")}
    relevant = {row["doc_id"] for row in rows(folder, "test_qrels")}
    assert set(category) == {row["doc_id"] for row in rows(folder, "catalogue")}
    assert {role[one] for one in clicked} == {"clicked"}
    assert {role[one] for one in relevant} == {"test"}
    asked = truth(folder, "queries", "query_id")
    shown = {asked[row["query_id"]] for row in rows(folder, "queries")}
    assert not shown & {category[one] for one in relevant}


def test_qrels_hold_all_documents_of_the_category_and_no_other(folder: Path) -> None:
    category, asked = truth(folder, "catalogue", "doc_id"), truth(folder, "queries", "query_id")
    for part in ("test", "seen"):
        found: dict[str, set[str]] = {}
        for row in rows(folder, f"{part}_qrels"):
            found.setdefault(row["query_id"], set()).add(row["doc_id"])
        for query, documents in found.items():
            assert documents == {one for one, name in category.items() if name == asked[query]}


def test_seen_queries_are_of_clicked_categories_and_not_in_the_behaviour(folder: Path) -> None:
    asked = truth(folder, "queries", "query_id")
    shown = {row["query_id"] for row in rows(folder, "queries")}
    seen = {row["query_id"] for row in rows(folder, "seen_queries")}
    assert seen
    assert not seen & shown
    assert {asked[one] for one in seen} <= {asked[one] for one in shown}


def test_no_artist_draws_a_query_and_a_document_of_one_category(folder: Path) -> None:
    drawn: dict[str, set[str]] = {}
    for row in rows(folder, "truth/catalogue"):
        drawn.setdefault(row["category"], set()).add(row["artist"])
    for row in rows(folder, "truth/queries"):
        assert row["artist"] not in drawn[row["category"]]


def test_roles_of_artists_are_kept() -> None:
    plan = make_plan(replace(CELL, documents=(4, 4)), small_domain(roles=True))
    assert {one.artist for rows in plan.documents.values() for one in rows} == {"artist-0", "artist-2"}
    assert {one.artist for one in (*plan.events, *plan.test)} == {"artist-1", "artist-3"}


def test_the_share_of_wrong_clicks_is_the_noise_and_wrong_ones_are_of_similar_categories() -> None:
    plan = make_plan(replace(CELL, categories=60, pictures=20.0), DOMAIN)
    total = sum(one.clicks for one in plan.clicks)
    wrong = sum(one.clicks for one in plan.clicks if not one.right)
    assert abs(wrong / total - 0.3) < 0.03
    category = {one.doc_id: key for key, rows in plan.documents.items() for one in rows}
    asked = {one.query_id: one.category for one in plan.events}
    clicked = [one for one in plan.categories if plan.roles[one.key] == "clicked"]
    similar = confusable(clicked, seed=CELL.seed)
    for one in plan.clicks:
        right = category[one.doc_id] == asked[one.query_id]
        assert one.right == right
        assert right or category[one.doc_id] in similar[asked[one.query_id]]


def test_similar_categories_are_those_of_the_group() -> None:
    similar = confusable(DOMAIN.categories, seed=0)
    assert set(similar["k7"]) == {"k5", "k6", "k8", "k9"}


def test_only_a_share_of_the_documents_is_clicked() -> None:
    plan = make_plan(replace(CELL, clicked=0.4, pictures=10.0), DOMAIN)
    outside = {one.doc_id for key, rows in plan.documents.items() if plan.roles[key] != "test" for one in rows}
    share = len({one.doc_id for one in plan.clicks}) / len(outside)
    assert 0.3 < share <= 0.46
    assert Counter(plan.roles.values())["test"] == 8


def test_numbers_of_pictures_and_clicks_are_those_of_the_cell() -> None:
    plan = make_plan(replace(CELL, pictures=4.0, clicks=6.0), DOMAIN)
    assert len(plan.events) == 4 * 32
    assert abs(sum(one.clicks for one in plan.clicks) / len(plan.events) - 6) < 0.5
    few = make_plan(replace(CELL, pictures=0.25), DOMAIN)
    assert len(few.events) == len({one.category for one in few.events}) == 8


def test_more_skew_gives_fewer_categories_more_pictures() -> None:
    def largest(skew: float) -> int:
        plan = make_plan(replace(CELL, skew=skew, pictures=6.0), DOMAIN)
        return max(Counter(one.category for one in plan.events).values())

    assert largest(0.0) < largest(1.0) < largest(2.5)


def test_missing_drawings_are_filled_with_other_drawings_then_copies(tmp_path: Path) -> None:
    cell = replace(CELL, categories=20, documents=(9, 9))
    summary = build(cell, DOMAIN, tmp_path / "cell", workers=1)
    # Four artists: three for documents, with two drawings each; three of nine are copies.
    counts = [summary["documents"][name] for name in ("first drawings", "other drawings of an artist")]
    assert [*counts, summary["documents"]["recoloured copies"]] == [60, 60, 60]
    pictures = [row["image"]["bytes"] for row in rows(tmp_path / "cell", "catalogue")]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("kind", ["rich", "poor", "other"])
def test_texts_have_no_word_of_the_name(kind: str) -> None:
    plan = make_plan(replace(CELL, text=kind), DOMAIN)
    label = {one.key: one.label for one in plan.categories}
    texts = [(one.category, one.text) for rows in plan.documents.values() for one in rows]
    assert any(text for _, text in texts)
    for category, text in texts:
        assert not [word for word in WORD.findall(text) if is_label_word(word, label[category])]


def test_the_name_is_in_texts_only_when_asked_for_and_none_means_none() -> None:
    plan = make_plan(replace(CELL, text="rich_with_name"), DOMAIN)
    label = {one.key: one.label for one in plan.categories}
    assert all(label[one.category] in one.text for rows in plan.documents.values() for one in rows)
    plan = make_plan(replace(CELL, text="none"), DOMAIN)
    assert not any(one.text for rows in plan.documents.values() for one in rows)


def test_another_language_needs_a_domain_that_has_one() -> None:
    categories = [replace(one, other={}) for one in DOMAIN.categories]
    with pytest.raises(ValueError, match="no words in another language"):
        make_plan(replace(CELL, text="other"), replace(DOMAIN, categories=categories))


def test_more_categories_than_the_domain_has_are_refused() -> None:
    with pytest.raises(ValueError, match="icons has 60 categories; a cell cannot have 61"):
        make_plan(replace(CELL, categories=61), DOMAIN)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ids(folder: Path, tmp_path: Path) -> None:
    build(CELL, small_domain(), tmp_path / "again", workers=1)
    for path in sorted(folder.rglob("*.parquet")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
    other = make_plan(replace(CELL, seed=1), DOMAIN)
    ids = {one.doc_id for found in other.documents.values() for one in found}
    assert not ids & {row["doc_id"] for row in rows(folder, "catalogue")}


def test_no_two_query_pictures_are_equal_and_all_have_one_size(folder: Path) -> None:
    pictures = [row["image"]["bytes"] for name in ("queries", "test_queries") for row in rows(folder, name)]
    assert len(set(pictures)) == len(pictures)
    assert {Image.open(io.BytesIO(data)).size for data in pictures} == {(128, 128)}


@pytest.mark.parametrize("painted", [True, False])
def test_pictures_of_shapes_and_of_drawings_are_repeatable(painted: bool) -> None:
    job = Job(shape("one"), 0, "artist", 0, painted)
    assert document_picture(job) == document_picture(job) != document_picture(job._replace(number=1))
    assert query_picture(job) == query_picture(job) != query_picture(job._replace(attempt=1))
    with Image.open(io.BytesIO(document_picture(job))) as opened:
        assert opened.mode == "RGB"


def test_the_summary_says_simulated_and_names_every_source(folder: Path) -> None:
    summary = json.loads((folder / "cell.json").read_text())
    assert summary["simulated"]
    assert "SIMULATED" in summary["note"]
    assert Cell.from_json(summary["settings"]) == CELL
    packages = {one["package"] for one in summary["attribution"]}
    assert packages == {"package-words", *(f"package-{number}" for number in range(4))}
    assert summary["rows"]["catalogue"] == len(rows(folder, "catalogue"))


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no cell.json"):
        build(CELL, DOMAIN, tmp_path, workers=1)
