"""Changes of an index against a plain dictionary: random operations, versions, kills, and what is refused."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import oclear
from retrieval.index import changes, folder, vector_search
from retrieval.index.folder import Change, load_index, save_index, versions, writing
from retrieval.index.store import Index
from retrieval.tables import FIELDS, read_table
from tests.support.tiny_retrieval import ROOT, TinyTask, call, drawing, image_column, write

WIDTH = 9
INFO = {
    "model": "",
    "kind": "Flat",
    "width": WIDTH,
    "recall_at_10_against_exact": 1.0,
    "exact_below": 10_000,
    "calibration": None,
    "skipped": [],
    "imputed": 0,
}
Shelf = dict[str, tuple[np.ndarray[Any, Any], float]]  # the documents that should be found: vector, price


def unit(generator: np.random.Generator, rows: int) -> np.ndarray[Any, Any]:
    vectors = generator.normal(size=(rows, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def documents_of(names: list[str]) -> pa.Table:
    return pa.table({"doc_id": pa.array(names, pa.string()), "text": pa.array(names, pa.string())})


def new_index(place: Path, rows: int, *, exact_below: int = 10_000) -> Shelf:
    generator = np.random.default_rng(rows)
    names, vectors = [f"d{row:04d}" for row in range(rows)], unit(generator, rows)
    prices = generator.random(rows)
    searcher = vector_search.build(vectors, exact_below=exact_below)
    info = INFO | {"kind": searcher.kind, "exact_below": exact_below}
    save_index(Index(searcher, documents_of(names), info, pa.table({"price": prices})), place)
    return {name: (vectors[row], float(prices[row])) for row, name in enumerate(names)}


def put(place: Path, shelf: Shelf, names: list[str], generator: np.random.Generator) -> dict[str, int]:
    vectors, prices = unit(generator, len(names)), generator.random(len(names))
    with writing(place):
        counts = changes.apply(
            place, Change(vectors, documents_of(names), pa.table({"price": prices}), names), cause="x"
        )
    shelf |= {name: (vectors[row], float(prices[row])) for row, name in enumerate(names)}
    return counts


def check(index: Index, shelf: Shelf, generator: np.random.Generator) -> None:
    """Searches of an index give what comparing all documents that it should hold gives."""
    assert len(index) == len(shelf)
    names = sorted(shelf)
    vectors, prices = np.stack([shelf[name][0] for name in names]), np.array([shelf[name][1] for name in names])
    queries = unit(generator, 5)
    for where, kept in ((None, np.ones(len(names), bool)), ("price < 0.2", prices < 0.2)):
        allowed = None if where is None else index.matching(where)
        rows, scores = index.search(queries, 7, allowed_N=allowed)
        truth = np.where(kept, queries @ vectors.T, -np.inf)
        order = np.argsort(-truth, axis=1, kind="stable")[:, :7]
        for query in range(len(queries)):
            found = [index.doc_ids[row] for row in rows[query] if row >= 0]
            best = [names[row] for row in order[query] if kept[row]]
            assert found == best
            np.testing.assert_allclose(scores[query, : len(found)], truth[query, order[query, : len(found)]], atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_any_sequence_of_changes_leaves_what_a_dictionary_holds(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_CHANGES", 5)
    generator, place = np.random.default_rng(seed), tmp_path / "index"
    shelf = new_index(place, 83)
    for turn in range(40):
        action = generator.choice(
            ["upsert", "delete", "fields", "compact", "rollback"], p=[0.45, 0.25, 0.15, 0.05, 0.1]
        )
        before = dict(shelf)
        some = [f"d{row:04d}" for row in generator.choice(130, size=generator.integers(1, 9), replace=False)]
        if action == "upsert":
            counts = put(place, shelf, some, generator)
            assert counts["replaced"] == sum(name in before for name in some)
            assert counts["added"] + counts["replaced"] == len(some)
        elif action == "delete":
            counts = changes.delete(place, [*some, some[0]])
            known = [name for name in some if name in shelf]
            assert (counts["deleted"], counts["unknown"]) == (len(known), len(some) - len(known))
            for name in known:
                del shelf[name]
        elif action == "fields":
            prices = generator.random(len(some))
            path = tmp_path / "fields.parquet"
            pa.parquet.write_table(pa.table({"doc_id": some, "price": prices}), path)
            counts = changes.update_fields(place, read_table(path, FIELDS))
            assert counts["updated"] + counts["unknown"] == counts["given"] == len(some)
            for name, price in zip(some, prices, strict=True):
                if name in shelf:
                    shelf[name] = (shelf[name][0], float(price))
        elif action == "compact":
            changes.compact(place)
        else:
            put(place, dict(shelf), some, generator)
            changes.rollback(place)
        index = load_index(place)
        assert versions(place)[-1].documents == len(index), (turn, action)
        assert len(folder.current_version(place).changes) <= 6
        check(index, shelf, generator)
    check(index.settled(), shelf, generator)
    assert len(versions(place)) == folder.KEPT
    names = {file.name for file in place.iterdir()}
    used = {part for one in versions(place) for part in (one.base, *one.changes)}
    assert {name for name in names if name.startswith(("base-", "change-"))} == used


def test_a_large_index_keeps_its_recall_through_changes(tmp_path: Path) -> None:
    place, generator = tmp_path / "index", np.random.default_rng(0)
    shelf = new_index(place, 3001, exact_below=1000)
    assert load_index(place).searcher.kind.startswith("IVF")
    vectors = {name: vector for name, (vector, _) in shelf.items()}
    changes.delete(place, sorted(shelf)[:900])
    for name in sorted(shelf)[:900]:
        del shelf[name]
    put(place, shelf, [f"n{row:04d}" for row in range(900)], generator)
    index = load_index(place)
    names = sorted(shelf)
    queries = unit(generator, 50)
    truth = np.sort(queries @ np.stack([shelf[name][0] for name in names]).T, axis=1)[:, -10]
    _, scores = index.search(queries, 10)
    assert (scores >= truth[:, None] - 1e-6).mean() > 0.95
    stored = dict(zip(index.doc_ids, index.searcher.vectors(), strict=False))
    assert all(np.array_equal(stored[name], vectors[name]) for name in names if name in vectors)
    changes.compact(place)
    _, fresh = load_index(place).search(queries, 10)
    assert (fresh >= truth[:, None] - 1e-6).mean() > 0.95


def test_documents_that_are_added_have_the_vectors_of_a_new_build(task: TinyTask, tmp_path: Path) -> None:
    model = oclear.load(task.model)
    rows = pa.parquet.read_table(task.table("catalogue"))
    whole = model.index(task.table("catalogue"))
    old, new = rows.slice(0, 50), rows.slice(50)
    index = model.index(old, folder=tmp_path / "index")
    before = dict(zip(index.index.doc_ids, index.index.searcher.vectors(), strict=True))
    counts = index.upsert(new)
    assert counts["given"] == counts["added"] + counts["skipped"] == len(new)
    assert (counts["replaced"], counts["documents"]) == (0, len(whole)) == (0, len(index))
    after = dict(zip(index.index.doc_ids, index.index.searcher.vectors(), strict=True))
    assert all(np.array_equal(after[name], vector) for name, vector in before.items())
    text_of = dict(zip(whole.index.doc_ids, whole.index.documents.column("has_text").to_pylist(), strict=True))
    image_of = dict(zip(whole.index.doc_ids, whole.index.documents.column("has_image").to_pylist(), strict=True))
    for name, vector in zip(whole.index.doc_ids, whole.index.searcher.vectors(), strict=True):
        if text_of[name] and image_of[name]:
            np.testing.assert_allclose(after[name], vector, atol=1e-5)
    picture = drawing("red", "box")
    assert {hit["doc_id"] for hit in index.search(picture, k=99).to_list()} == set(whole.index.doc_ids)
    assert model.load_index(tmp_path / "index").search(picture).to_list() == index.search(picture).to_list()
    index.rollback()
    assert len(index) == len(before)


def test_the_commands_print_counts_that_add_up(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "index"
    shutil.copytree(built, place)
    write(tmp_path, "new", doc_id=["d037-1", "new"], image=image_column([None, None]), text=["a red box", "a teal bar"])
    write(tmp_path, "price", doc_id=["new", "nobody"], price=[3.5, 1.0])

    def update(*words: Any) -> Any:
        capsys.readouterr()
        assert call("update", "--index", place, *words) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    [counts] = update("--model", task.model, "--catalogue", tmp_path / "new.parquet")
    assert counts == {"given": 2, "added": 1, "replaced": 1, "documents": 58, "skipped": 0}
    assert update("--fields", tmp_path / "price.parquet") == [{"given": 2, "updated": 1, "unknown": 1, "documents": 58}]
    assert np.flatnonzero(load_index(place).matching("price = 3.5")).size == 1
    assert update("--delete", "new", "nobody") == [{"given": 2, "deleted": 1, "unknown": 1, "documents": 57}]
    assert [one["cause"] for one in update("--versions")] == ["upsert", "update_fields", "delete"]
    assert update("--rollback") == [{"documents": 58}]
    assert update("--compact") == [{"documents": 58, "rows_removed": 2}]
    assert call("update", "--index", place, "--rollback", 99) == 2
    assert "there is no version 99; it has" in capsys.readouterr().err


def test_what_cannot_be_done_is_refused_and_changes_nothing(
    task: TinyTask, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    shutil.copytree(built, place)
    before = folder.current_version(place)
    write(tmp_path, "text", doc_id=["d037-1"], text=["other"])
    write(tmp_path, "ids", doc_id=["d037-1"])
    for name, reason in (("text", "text is embedded"), ("ids", "no column beside doc_id")):
        with pytest.raises(ValueError, match=reason):
            changes.update_fields(place, read_table(tmp_path / f"{name}.parquet", FIELDS))
    with pytest.raises(ValueError, match="all 57 documents would be deleted"):
        changes.delete(place, load_index(place).doc_ids)
    with pytest.raises(ValueError, match="version 1 is the only one"):
        changes.rollback(place)
    index = oclear.load(task.model).index(task.table("catalogue"))
    with pytest.raises(ValueError, match="in memory only"):
        index.delete(["d037-1"])
    monkeypatch.setattr(folder, "SECONDS_TO_WAIT", 0.1)
    with writing(place), pytest.raises(folder.IndexBusy, match=r"another process has been writing for 0\.1 s"):
        changes.delete(place, ["d037-1"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="1 is int; an id is text"):
        changes.delete(place, [1])  # type: ignore[list-item]
    pa.parquet.write_table(pa.table({"doc_id": ["d037-1"], "raw": [[b"x"]]}), tmp_path / "raw.parquet")
    with pytest.raises(ValueError, match="column 'raw' is list"):
        changes.update_fields(place, read_table(tmp_path / "raw.parquet", FIELDS))
    with pytest.raises(ValueError, match=r"no current\.json"):
        changes.delete(tmp_path / "nothing", ["x"])
    assert not (tmp_path / "nothing").exists()
    assert folder.current_version(place) == before
    shelf = new_index(tmp_path / "prices", 9)
    wrong = Change(unit(np.random.default_rng(0), 1), documents_of(["x"]), pa.table({"price": ["cheap"]}), ["x"])
    with writing(tmp_path / "prices"), pytest.raises(ValueError, match="column 'price': cheap is no double"):
        changes.apply(tmp_path / "prices", wrong, cause="x")
    wide = Change(np.zeros((1, 4), np.float32), documents_of(["x"]), pa.table({}), ["x"])
    with writing(tmp_path / "prices"), pytest.raises(ValueError, match="width 9"):
        changes.apply(tmp_path / "prices", wide, cause="x")
    check(load_index(tmp_path / "prices"), shelf, np.random.default_rng(1))


def test_values_of_text_files_take_the_types_of_the_index(tmp_path: Path) -> None:
    place = tmp_path / "index"
    info = INFO | {"documents": 2}
    fields = pa.table({"price": [1.0, 2.0], "sku": ["007", "8"], "day": pa.array([0, 1], pa.date32()), "stock": [3, 4]})
    vectors = unit(np.random.default_rng(0), 2)
    save_index(Index(vector_search.build(vectors), documents_of(["a", "b"]), info, fields), place)
    (tmp_path / "new.csv").write_text("doc_id,price,sku,day,stock\na,,123,2026-05-05,2.5\n")
    assert changes.update_fields(place, read_table(tmp_path / "new.csv", FIELDS))["updated"] == 1
    index = load_index(place)
    row = index.fields.take(pa.array([2])).to_pylist()[0]
    assert (row["price"], row["sku"], str(row["day"]), row["stock"]) == (None, "123", "2026-05-05", 2.5)
    pa.parquet.write_table(pa.table({"doc_id": ["a"], "day": ["soon"]}), tmp_path / "day.parquet")
    with pytest.raises(ValueError, match=r"column 'day': soon is no date32\[day\], which the index has there"):
        changes.update_fields(place, read_table(tmp_path / "day.parquet", FIELDS))


def test_a_version_that_was_never_searched_is_not_gone_back_to(tmp_path: Path) -> None:
    place = tmp_path / "index"
    shelf = new_index(place, 31)
    put(place, shelf, ["new"], np.random.default_rng(0))
    before = (place / "current.json").read_bytes()
    changes.delete(place, [f"d{row:04d}" for row in range(20)])
    (place / "current.json").write_bytes(before)  # as if killed between the two files of a version
    assert [one.number for one in versions(place)] == [1, 2]
    put(place, dict(shelf), ["other"], np.random.default_rng(1))
    assert changes.rollback(place)["documents"] == 32
    check(load_index(place), shelf, np.random.default_rng(2))


def test_versions_are_ordered_by_number_beyond_four_digits(tmp_path: Path) -> None:
    place = tmp_path / "index"
    shelf = new_index(place, 9)
    version = json.loads((place / "version-0001.json").read_text()) | {"number": 9999}
    (place / "version-9999.json").write_text(json.dumps(version))
    (place / "version-0001.json").unlink()
    (place / "current.json").write_text(json.dumps({"format": 2, "version": 9999}))
    for turn in range(5):
        put(place, shelf, [f"n{turn}"], np.random.default_rng(turn))
    assert [one.number for one in versions(place)] == [10002, 10003, 10004]
    assert changes.rollback(place)["documents"] == 13


def test_documents_of_another_model_are_not_mixed_in(task: TinyTask, tmp_path: Path) -> None:
    model = oclear.load(task.model)
    model.index(task.table("catalogue"), folder=tmp_path / "index")
    shutil.copytree(task.model, tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text()) | {"text_strength": 0.3}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    other = oclear.load(tmp_path / "hub").load_index(tmp_path / "index")  # searching it is right
    with pytest.raises(ValueError, match="of another model than hub, or of another text weight"):
        other.upsert([{"doc_id": "x", "image": None, "text": "a red box"}])


def test_a_document_without_text_is_imputed_even_if_the_build_had_none(task: TinyTask, tmp_path: Path) -> None:
    model = oclear.load(task.model)
    rows = [row for row in pa.parquet.read_table(task.table("catalogue")).to_pylist()[:40] if row["text"]]
    bare = {"doc_id": "bare", "image": rows[0]["image"], "text": ""}
    index = model.index(rows, folder=tmp_path / "index")
    assert index.index.info["imputed"] == 0
    index.upsert([bare])
    found = index.index.documents.to_pylist()[-1]
    assert (found["doc_id"], found["imputed"]) == ("bare", True)
    whole = model.index([*rows, bare])
    np.testing.assert_allclose(
        index.index.searcher.vectors()[-1], whole.index.searcher.vectors()[whole.index.doc_ids.index("bare")], atol=2e-3
    )


def test_a_version_that_names_a_path_outside_the_folder_is_refused(tmp_path: Path) -> None:
    new_index(tmp_path / "index", 9)
    path = tmp_path / "index" / "version-0001.json"
    path.write_text(path.read_text().replace("base-0001", "../base-0001"))
    with pytest.raises(ValueError, match="which is no part of an index"):
        load_index(tmp_path / "index")


def test_searches_go_on_while_others_write(tmp_path: Path) -> None:
    place = tmp_path / "index"
    shelf = new_index(place, 31)
    failures: list[Exception] = []
    ended = threading.Event()

    def read() -> None:
        try:
            while not ended.is_set():
                index = load_index(place)
                assert len(index) in (31, 32)
                index.search(unit(np.random.default_rng(0), 1), 3)
        except (AssertionError, ValueError) as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        if turn % 2:
            changes.delete(place, ["new"])
        else:
            put(place, dict(shelf), ["new"], np.random.default_rng(turn))
    ended.set()
    reader.join()
    assert not failures, failures


# Each writer is a fork of one process, which has imported everything: a kill costs no start.
WRITERS = """
import os, signal, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from retrieval.index import changes
from retrieval.index.folder import Change, writing

place, kills = Path(sys.argv[1]), int(sys.argv[2])
generator = np.random.default_rng(3)


def write(kill):
    turn = 0
    while True:
        name = f"k{kill}-{turn}"
        documents, fields = pa.table({"doc_id": [name], "text": [name]}), pa.table({"price": [0.5]})
        with writing(place):
            changes.apply(place, Change(np.ones((1, 9), np.float32), documents, fields, [name]), cause="x")
        os.write(1, f"{name}\\n".encode())
        if turn % 3 == 2:
            changes.compact(place)
        turn += 1


for kill in range(kills):
    child = os.fork()
    if child == 0:
        write(kill)
    time.sleep(float(generator.random()) * 0.4)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.write(1, b"killed\\n")
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_that_it_has_acknowledged(tmp_path: Path) -> None:
    place, kills = tmp_path / "index", 20
    new_index(place, 31)
    words = [sys.executable, "-c", WRITERS, str(place), str(kills)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.split("\n")[:-1]
    assert (done.returncode, lines.count("killed")) == (0, kills), done.stderr
    acknowledged = {line for line in lines if line != "killed"}
    index = load_index(place)
    alive = {name for row, name in enumerate(index.doc_ids) if index.alive_N is None or index.alive_N[row]}
    assert len(acknowledged) > 3  # a busy machine acknowledges few
    assert acknowledged <= alive
    assert len(alive - acknowledged) <= 31 + kills  # some were written, and killed before they said so
    changes.delete(place, ["d0000"])  # the next write is not held up
