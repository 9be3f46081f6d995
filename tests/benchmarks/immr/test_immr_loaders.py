"""Loaders of public catalogues, on tiny files in the documented formats."""

import csv
import dataclasses
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.immr.loaders import OvenFiles, load_abo, load_inshop, load_laion_rvs_fashion, load_oven
from benchmarks.immr.loaders.assembling import Document, Query, build_task, subset_of
from benchmarks.immr.protocol.evaluation import evaluate
from benchmarks.immr.protocol.export import write_tables
from benchmarks.immr.protocol.task import Task
from retrieval.evaluation.judgements import build_gallery, connected, read_judgements
from retrieval.tables import CATALOGUE, GALLERY, MERGE, QRELS, QUERIES, read_table


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def column(task: Task, name: str) -> dict[str, Any]:
    return dict(zip(task.doc_ids, task.documents[name].to_pylist(), strict=True))


def test_subsets_are_tenths_of_a_hash_and_the_three_test_sets_are_disjoint() -> None:
    names = [f"group {number}" for number in range(3000)]
    subsets = [{name: subset_of(name, split=split) for name in names} for split in (0, 1, 2)]
    tested = [{name for name, subset in found.items() if subset == "test"} for found in subsets]
    assert not tested[0] & tested[1]
    assert not (tested[0] | tested[1]) & tested[2]
    for found in subsets:
        share = {subset: list(found.values()).count(subset) / 3000 for subset in ("train", "validation", "test")}
        assert share == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.03)
    with pytest.raises(ValueError, match="split is 3"):
        subset_of("group", split=3)


def test_a_component_is_named_after_its_smallest_name() -> None:
    assert connected([("c", "b"), ("b", "a"), ("z", "y")]) == {
        "a": "a",
        "b": "a",
        "c": "a",
        "y": "y",
        "z": "y",
    }


def test_a_task_without_an_answerable_query_is_rejected() -> None:
    row = Document("a", "a.png", "text", "", "g")
    with pytest.raises(ValueError, match="no query with a relevant one"):
        build_task("empty", [row], [Query("q", "q.png", frozenset({"b"}), "g")])


# --- Amazon Berkeley Objects ---


def listing(item: str, main: str, *others: str, domain: str = "a.com", **more: Any) -> dict[str, Any]:
    name = [{"language_tag": "de_DE", "value": f"{item} auf Deutsch"}, {"language_tag": "en_US", "value": item.lower()}]
    row = {"item_id": item, "domain_name": domain, "main_image_id": main, "other_image_id": [*others]}
    return {**row, "item_name": name, "product_type": [{"value": "SHOES"}], **more}


def abo_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    half = len(rows) // 2
    write_lines(folder / "listings/metadata/listings_0.json.gz", rows[:half])
    write_lines(folder / "listings/metadata/listings_f.json.gz", rows[half:])
    pictures = sorted({name for row in rows for name in (row["main_image_id"], *row["other_image_id"])} - {"lost"})
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["image_id", "height", "width", "path"])
    table.writerows([name, 10, 10, f"{name[:2]}/{name}.jpg"] for name in pictures)
    (folder / "images/metadata").mkdir(parents=True)
    (folder / "images/metadata/images.csv.gz").write_bytes(gzip.compress(stream.getvalue().encode()))
    return folder


def item_of(subset: str, *, but: str = "") -> str:
    """A product id whose single listing belongs to a subset of split 0."""
    names = (f"B{number:03d}" for number in range(1000))
    return next(one for one in names if subset_of(f"{one}@a.com", split=0) == subset and one != but)


def test_abo_every_listing_of_a_product_is_relevant_to_its_other_views(tmp_path: Path) -> None:
    test, other, train = item_of("test"), item_of("test", but=item_of("test")), item_of("train")
    rows = [
        listing(test, "m1", "v1", "v2", "chart"),
        listing(test, "m1", "v1", domain="b.com", item_name=[{"language_tag": "fr_FR", "value": "en francais"}]),
        listing(other, "m2", "v3", "m1x", "lost", "chart"),
        listing(train, "m3", "v4", "chart"),
        *(listing(f"C{number}", f"n{number}", "chart") for number in range(20)),
    ]
    task = load_abo(abo_folder(tmp_path, rows))
    assert task.documents.num_rows == 24
    assert set(task.query_ids) == {"v1", "v2", "v3", "m1x"}, "no chart, no missing image, no training view"
    both = {f"{test}@a.com": 1, f"{test}@b.com": 1}
    assert task.qrels["v1"] == task.qrels["v2"] == both, "v2 is in one listing of the product, both are relevant"
    assert task.qrels["v3"] == {f"{other}@a.com": 1}
    assert task.merged == [(f"{test}@b.com", f"{test}@a.com")]
    assert task.category_of_query["v1"] == task.category_of_query["v2"] != task.category_of_query["v3"]
    text = column(task, "text")
    assert (text[f"{test}@a.com"], text[f"{test}@b.com"]) == (test.lower(), "en francais")
    assert column(task, "leaf")[f"{train}@a.com"] == "SHOES"
    assert column(task, "image")[f"{test}@a.com"].endswith("images/small/m1/m1.jpg")
    assert set(both) <= set(task.unseen_documents)
    assert f"{train}@a.com" not in task.unseen_documents


def test_abo_subsets_share_no_category_and_training_contains_no_other_subset(tmp_path: Path) -> None:
    rows = [listing(f"B{number:03d}", f"m{number}", f"v{number}", f"w{number // 2}") for number in range(80)]
    folder = abo_folder(tmp_path, rows)
    tasks = {subset: load_abo(folder, subset=subset, split=1) for subset in ("train", "validation", "test")}
    groups = {subset: set(task.category_of_query.values()) for subset, task in tasks.items()}
    assert not groups["train"] & groups["validation"]
    assert not (groups["train"] | groups["validation"]) & groups["test"]
    assert sum(len(task.query_ids) for task in tasks.values()) == 120, "each view is a query of one subset"
    train, validation = set(tasks["train"].doc_ids), set(tasks["validation"].doc_ids)
    assert not train & set(tasks["test"].unseen_documents)
    assert train < validation
    assert not validation & set(tasks["test"].unseen_documents)
    assert not tasks["train"].unseen_documents


def test_abo_rejects_missing_archives_and_unknown_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="extract the images archive"):
        load_abo(tmp_path)
    with pytest.raises(ValueError, match="subset is 'dev'"):
        load_abo(tmp_path, subset="dev")
    with pytest.raises(ValueError, match="images is 'huge'"):
        load_abo(tmp_path, images="huge")


# --- DeepFashion In-Shop ---

PHOTOS = [
    ("img/WOMEN/Dresses/id_1/01_1_front.jpg", "id_1", "query"),
    ("img/WOMEN/Dresses/id_1/01_2_side.jpg", "id_1", "gallery"),
    ("img/WOMEN/Dresses/id_1/02_1_front.jpg", "id_1", "gallery"),
    ("img/MEN/Shirts/id_2/01_1_front.jpg", "id_2", "query"),
    ("img/MEN/Shirts/id_2/01_2_side.jpg", "id_2", "gallery"),
    ("img/MEN/Shirts/id_3/01_2_side.jpg", "id_3", "gallery"),
]


def inshop_folder(folder: Path, *, rows: int | None = None) -> Path:
    trained = [
        (f"img/MEN/Pants/t{item}/0{view}_1_front.jpg", f"t{item}", "train") for item in range(40) for view in (2, 1)
    ]
    photos = [*PHOTOS, *trained]
    lines = [str(len(photos) if rows is None else rows), "image_name item_id evaluation_status"]
    (folder / "Eval").mkdir()
    (folder / "Anno").mkdir()
    text = "\n".join([*lines, *("   ".join(photo) for photo in photos)])
    (folder / "Eval/list_eval_partition.txt").write_text(text + "\n")
    described = [
        {"item": "id_1", "color": "Red", "description": ["A dress.", "", "Cotton."]},
        {"item": "id_1", "color": "Blue", "description": ["A dress.", "Cotton."]},
        {"item": "id_2", "color": "White", "description": ["A shirt."]},
    ]
    (folder / "Anno/list_description_inshop.json").write_text(json.dumps(described))
    return folder


def test_inshop_keeps_the_official_partition_and_documents_have_their_description(tmp_path: Path) -> None:
    task = load_inshop(inshop_folder(tmp_path))
    assert task.query_ids == [PHOTOS[0][0], PHOTOS[3][0]]
    assert task.qrels[PHOTOS[0][0]] == {PHOTOS[1][0]: 1, PHOTOS[2][0]: 1}
    assert task.doc_ids == [PHOTOS[row][0] for row in (1, 2, 4, 5)]
    text = column(task, "text")
    assert text[PHOTOS[1][0]] == "A dress. Cotton.", "two colours: the one in the photo is unknown"
    assert text[PHOTOS[4][0]] == "White. A shirt."
    assert task.document_facts[PHOTOS[5][0]]["text"] == "empty"
    assert column(task, "leaf")[PHOTOS[1][0]] == "WOMEN/Dresses"
    assert set(task.unseen_documents) == set(task.doc_ids)
    assert column(task, "image")[PHOTOS[1][0]] == str(tmp_path / "Img" / PHOTOS[1][0])


def test_inshop_training_items_form_their_own_tasks(tmp_path: Path) -> None:
    folder = inshop_folder(tmp_path)
    train, validation = load_inshop(folder, subset="train"), load_inshop(folder, subset="validation")
    assert train.documents.num_rows + validation.documents.num_rows == 40
    assert validation.documents.num_rows > 0
    assert all("/01_1" in one for one in train.doc_ids), "the first photo by name is the document"
    assert all("/02_1" in one for one in train.query_ids)
    assert not set(train.category_of_query.values()) & set(validation.category_of_query.values())
    assert not train.unseen_documents


def test_inshop_truncated_or_malformed_files_are_rejected(tmp_path: Path) -> None:
    folder = inshop_folder(tmp_path, rows=1000)
    with pytest.raises(ValueError, match="the first line says 1000, there are 86 rows"):
        load_inshop(folder)
    path = folder / "Eval/list_eval_partition.txt"
    path.write_text("1\nimage_name item_id evaluation_status\na.jpg id_1 test\n")
    with pytest.raises(ValueError, match="line 3 is 'a.jpg id_1 test'"):
        load_inshop(folder)


# --- LAION-RVS-Fashion ---


def rvs_files(folder: Path) -> tuple[list[Path], list[Path]]:
    def row(url: str, split: str, product: int | None, kind: str = "SIMPLE") -> dict[str, Any]:
        return {"URL": url, "TEXT": "zzz", "ENG_TEXT": f"text of {url}", "TYPE": kind, "SPLIT": split} | {
            "PRODUCT_ID": product,
            "CATEGORY": "Feet",
            "blip2_caption1": "a shoe" if product is not None else None,
        }

    rows = [
        row("p1s", "test_gallery", 1),
        row("p1c", "test_query", 1, "COMPLEX"),
        row("p2s", "test_gallery", 2),
        row("p2c", "test_query", 2, "COMPLEX"),
        row("p2c", "test_query", 2, "COMPLEX"),
        row("d1", "test_gallery", None),
        row("d2", "test_gallery", None),
        row("gone", "test_gallery", None),
        row("t1s", "train", 7),
        row("t1c", "train", 7, "COMPLEX"),
        row("t1p", "train", 7, "PARTIAL_COMPLEX"),
        row("v1s", "val_gallery", 8),
        row("v1c", "val_query", 8, "COMPLEX"),
    ]
    schema = pa.schema([(name, pa.int64() if name == "PRODUCT_ID" else pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows[:7], schema=schema), folder / "one.parquet")
    pq.write_table(pa.Table.from_pylist(rows[7:], schema=schema), folder / "two.parquet")
    urls = [row["URL"] for row in rows if row["URL"] != "gone"]
    images = pa.table({"url": urls, "jpg": [one.encode() for one in urls]})
    pq.write_table(images, folder / "images.parquet")
    return [folder / "one.parquet", folder / "two.parquet"], [folder / "images.parquet"]


def test_rvs_scenes_are_queries_against_products_and_distractors_with_text(tmp_path: Path) -> None:
    metadata, images = rvs_files(tmp_path)
    task = load_laion_rvs_fashion(metadata, images)
    assert sorted(task.doc_ids) == ["d1", "d2", "p1s", "p2s"], "the one without an image is left out"
    assert sorted(task.query_ids) == ["p1c", "p2c"], "a repeated URL is one query"
    assert task.qrels["p1c"] == {"p1s": 1}
    assert column(task, "text")["d1"] == "text of d1", "captions would reveal the distractors"
    assert column(task, "image")["p1s"] == b"p1s"
    assert sorted(load_laion_rvs_fashion(metadata, images, distractors=1).doc_ids) == ["d1", "p1s", "p2s"]


def test_rvs_training_and_validation_subsets(tmp_path: Path) -> None:
    metadata, images = rvs_files(tmp_path)
    train = load_laion_rvs_fashion(metadata, images, subset="train")
    assert train.qrels == {"t1c": {"t1s": 1}, "t1p": {"t1s": 1}}
    assert not train.unseen_documents
    assert load_laion_rvs_fashion(metadata, images, subset="validation").qrels == {"v1c": {"v1s": 1}}


def test_rvs_names_missing_columns_and_files(tmp_path: Path) -> None:
    metadata, images = rvs_files(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the columns .*ENG_TEXT"):
        load_laion_rvs_fashion(images, images)
    with pytest.raises(ValueError, match="nowhere.parquet"):
        load_laion_rvs_fashion(metadata, [tmp_path / "nowhere.parquet"])


# --- OVEN and InfoSeek ---


def oven_files(folder: Path) -> dict[str, Path]:
    def row(number: int, photo: str, entity: str) -> dict[str, Any]:
        return {"data_id": f"d{number}", "image_id": photo, "question": f"what is this {number}?"} | {
            "entity_id": entity,
            "entity_text": "title",
            "data_split": "val",
        }

    annotations = [row(0, "i0", "Q1"), row(1, "i0", "Q2"), row(2, "i1", "Q2"), row(3, "unknown", "Q3")]
    knowledge = [
        {
            "wikidata_id": f"Q{number}",
            "wikipedia_title": f"T{number}",
            "wikipedia_summary": about,
            "wikipedia_content": c,
        }
        for number, (about, c) in enumerate([("s0", ""), ("s1", "long"), ("", "c2"), ("s3", ""), ("", "")])
    ]
    info = [
        {"data_id": one["data_id"], "image_id": one["image_id"], "question": "?", "answer": ["x"]}
        for one in annotations
    ]
    return {
        "annotations": write_lines(folder / "oven_entity_val.jsonl", annotations),
        "knowledge": write_lines(folder / "Wiki6M_ver_1_0.jsonl.gz", knowledge),
        "images": write_lines(
            folder / "id2image.jsonl", [{"image_id": f"i{n}", "image_path": f"photos/{n}.jpg"} for n in range(2)]
        ),
        "entity_images": write_lines(folder / "wiki.jsonl", [{"image_id": "Q1", "image_path": "wiki/Q1.jpg"}]),
        "seen": write_lines(folder / "train.jsonl", [row(9, "i9", "Q2")]),
        "infoseek": write_lines(folder / "infoseek_val.jsonl", info),
        "entities": write_lines(
            folder / "withkb.jsonl", [{"data_id": f"d{n}", "entity_id": q} for n, q in enumerate(("Q1", "Q2", "Q2"))]
        ),
    }


def test_oven_all_entities_of_a_photo_are_relevant(tmp_path: Path) -> None:
    files = oven_files(tmp_path)
    names = ("annotations", "knowledge", "images", "entity_images")
    chosen = OvenFiles(**{name: files[name] for name in names})
    task = load_oven(dataclasses.replace(chosen, seen=files["seen"]))
    assert task.qrels == {"i0": {"Q1": 1, "Q2": 1}, "i1": {"Q2": 1}}, "the photo without a file is left out"
    assert "question" not in task.queries.schema.names
    assert column(task, "text") == {"Q0": "T0. s0", "Q1": "T1. s1", "Q2": "T2. c2", "Q3": "T3. s3", "Q4": "T4"}
    assert column(task, "image") == {"Q1": "wiki/Q1.jpg"} | dict.fromkeys(["Q0", "Q2", "Q3", "Q4"])
    assert task.document_facts["Q2"]["image"] == "missing"
    assert set(task.unseen_documents) == {"Q0", "Q1", "Q3", "Q4"}
    few = load_oven(chosen, distractors=1)
    assert few.doc_ids == ["Q1", "Q2", "Q0"]


def test_infoseek_entities_are_read_from_the_withkb_file(tmp_path: Path) -> None:
    files = oven_files(tmp_path)
    without_entities = OvenFiles(files["infoseek"], files["knowledge"], files["images"])
    task = load_oven(dataclasses.replace(without_entities, entities=files["entities"]))
    assert task.qrels == {"i0": {"Q1": 1, "Q2": 1}, "i1": {"Q2": 1}}
    with pytest.raises(ValueError, match=r"line 1 lacks the fields \['entity_id'\]"):
        load_oven(without_entities)


def test_a_loaded_task_can_be_evaluated(tmp_path: Path) -> None:
    task = load_inshop(inshop_folder(tmp_path))
    item = {name: float(name.split("id_")[1][0]) for name in (*task.doc_ids, *task.query_ids)}
    wave = {name: [np.cos(value), np.sin(value)] for name, value in item.items()}
    scores = evaluate(task, [wave[name] for name in task.query_ids], [wave[name] for name in task.doc_ids])
    assert scores.rank.tolist() == [1, 1]


def test_a_loaded_task_is_written_as_the_tables_that_the_commands_read(tmp_path: Path) -> None:
    test = item_of("test")
    rows = [listing(test, "m1", "v1"), listing(test, "m1", domain="b.com"), listing(item_of("train"), "m2", "v2")]
    folder = abo_folder(tmp_path / "abo", rows)
    for name in ("m1", "m2", "v1", "v2"):
        path = folder / f"images/small/{name}/{name}.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    task, out = load_abo(folder), tmp_path / "tables"
    write_tables(task, out)
    declared = {"catalogue": CATALOGUE, "queries": QUERIES, "qrels": QRELS, "gallery_unseen": GALLERY, "merged": MERGE}
    tables = {name: read_table(out / f"{name}.parquet", schema) for name, schema in declared.items()}
    found = {row["doc_id"]: row for row in pq.read_table(out / "catalogue.parquet").to_pylist()}
    assert found[f"{test}@a.com"]["image"] == {"bytes": b"m1", "path": None}, "images are stored in the table"
    assert (found[f"{test}@a.com"]["text"], found[f"{test}@a.com"]["leaf"]) == (test.lower(), "SHOES")
    gallery = build_gallery(task.doc_ids, None, task.merged)
    judgements = read_judgements(tables["qrels"], queries=task.query_ids, catalogue=task.doc_ids, gallery=gallery)
    assert judgements.relevance == task.qrels
    assert tables["merged"].read(["same_as"])["same_as"] == [f"{test}@a.com"]
    assert tables["gallery_unseen"].read(["doc_id"])["doc_id"] == sorted(task.unseen_documents)
    assert not (out / "behaviour.parquet").exists()
    with pytest.raises(ValueError, match="tables is not empty"):
        write_tables(task, out)
    write_tables(load_abo(folder, subset="train"), tmp_path / "train", behaviour=True)
    clicks = pq.read_table(tmp_path / "train/behaviour.parquet").to_pylist()
    assert clicks == [{"query_id": "v2", "doc_id": f"{item_of('train')}@a.com", "clicks": 1}]


def test_tables_of_a_task_with_missing_image_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing: extract all images"):
        write_tables(load_inshop(inshop_folder(tmp_path)), tmp_path / "tables")
