"""The Python API: clicks to answers in one process, and errors that name value and remedy."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import oclear
from tests.support.commands import reset_accelerator
from tests.support.loopback_hub import loopback_hub
from tests.support.synthetic_shop import SyntheticShop, write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShop:
    return write_shop(tmp_path_factory.mktemp("shop"), categories=12, queries=4)


@pytest.fixture(scope="module")
def governed(shop: SyntheticShop) -> oclear.Governed:
    """Governed from a DataFrame, a list of dicts with PIL images, and a path."""
    queries = pq.read_table(shop.folder / "queries.parquet").to_pylist()
    pictures = [row | {"image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in queries]
    return oclear.govern(
        behaviour=pd.read_parquet(shop.folder / "behaviour.parquet"),
        queries=pictures,
        catalogue=shop.folder / "catalogue.parquet",
        out=shop.folder / "governed",
        policy={"validation_share": 0.2},
    )


@pytest.fixture(scope="module")
def run(governed: oclear.Governed) -> oclear.Run:
    recipe = oclear.recipe_by_name("tiny").with_changes({"image.steps": 6})
    found = oclear.train(governed, recipe=recipe, out=governed.folder.parent / "run")
    reset_accelerator()
    return found


@pytest.fixture(scope="module")
def model(run: oclear.Run) -> oclear.Model:
    return run.load(device="cpu")


def test_governed_tells_what_became_of_every_row(governed: oclear.Governed, shop: SyntheticShop) -> None:
    assert governed.ledger["rows"]["queries"]["in"] == len(shop.query_truth)
    assert governed.categories.num_rows > 1
    first = next(iter(shop.query_truth))
    assert first in governed.explain(first)
    assert governed.report().read_text().startswith("<!doctype html>")
    assert governed.dropped("queries").num_rows == governed.ledger["rows"]["queries"]["dropped"]
    assert "rows kept" in repr(governed)
    with pytest.raises(ValueError, match="'clicks' is no table of rejected rows; .* has behaviour, catalogue, queries"):
        governed.dropped("clicks")


def test_a_second_call_reuses_the_finished_stages(governed: oclear.Governed, shop: SyntheticShop) -> None:
    stages = governed.folder / "stages"
    before = {path: path.stat().st_mtime_ns for path in sorted(stages.rglob("*.parquet"))}
    queries = pq.read_table(shop.folder / "queries.parquet").to_pylist()
    again = oclear.govern(
        behaviour=pd.read_parquet(shop.folder / "behaviour.parquet"),
        queries=[row | {"image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in queries],
        catalogue=shop.folder / "catalogue.parquet",
        out=governed.folder,
        policy=oclear.Policy(validation_share=0.2),
    )
    assert again.categories.equals(governed.categories)
    assert {path: path.stat().st_mtime_ns for path in sorted(stages.rglob("*.parquet"))} == before


def test_a_run_holds_its_metrics_and_says_what_it_published(run: oclear.Run) -> None:
    assert run.metrics == json.loads((run.folder / "training.json").read_text())
    assert run.published.startswith("Published: ")
    assert (run.hub / "config.json").is_file()


def test_queries_and_documents_are_embedded_in_their_order(model: oclear.Model, shop: SyntheticShop) -> None:
    rows = pq.read_table(shop.folder / "catalogue.parquet").to_pylist()[:5]
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    path = shop.folder / "one.png"
    path.write_bytes(rows[1]["image"]["bytes"])
    given = [pictures[0], path, rows[2]["image"]["bytes"], str(path), pictures[4]]
    queries = model.encode_query(given, batch_size=2)
    assert queries.shape == (5, model.width)
    assert queries.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(queries[1], queries[3])
    with torch.no_grad():
        expected = model.encoder.model.get_query_embeds(model.encoder.processor(images=pictures)["pixel_values"])
    np.testing.assert_allclose(queries[[0, 2, 4]], expected[[0, 2, 4]], atol=1e-5)
    mixed = model.encode_document(
        [{"image": pictures[0], "text": "a mug"}, "a lamp", pictures[2], {"image": path, "text": None}], batch_size=3
    )
    alone = [
        model.encode_document({"image": pictures[0], "text": "a mug"}),
        model.encode_document("a lamp"),
        model.encode_document({"image": pictures[2]}),
        model.encode_document({"image": rows[1]["image"]["bytes"], "text": ""}),
    ]
    np.testing.assert_allclose(mixed, np.concatenate(alone), atol=1e-5)
    assert model.encode_query([]).shape == (0, model.width)


def test_an_index_answers_with_a_table_and_is_found_again(
    model: oclear.Model, shop: SyntheticShop, tmp_path: Path
) -> None:
    rows = pq.read_table(shop.folder / "catalogue.parquet").to_pylist()
    index = model.index(rows, folder=tmp_path / "index")
    assert len(index) == len(rows)
    picture = Image.open(io.BytesIO(rows[3]["image"]["bytes"]))
    hits = index.search([picture, picture], k=3)
    frame = hits.to_pandas()
    assert list(frame.columns) == ["query", "rank", "doc_id", "score", "text", "leaf"]
    assert frame["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    assert frame["query"].tolist() == ["0", "0", "0", "1", "1", "1"]
    for query in ("0", "1"):
        scores = frame.loc[frame["query"] == query, "score"].tolist()
        assert scores == sorted(scores, reverse=True)
    again = model.load_index(tmp_path / "index").search(picture, k=3).to_list()
    assert [row["doc_id"] for row in again] == frame["doc_id"][:3].tolist()
    assert hits.to_html(tmp_path / "answers.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.encode_query("red mug"), "query 0: a query is a picture, and 'red mug' is no file"),
        (lambda model: model.encode_query(["missing.png"]), "query 0: there is no file 'missing.png'"),
        (lambda model: model.encode_query([b"no picture"]), "query 0: "),
        (lambda model: model.encode_query([Image.new("RGB", (4, 4)), None]), "query 1 is NoneType; give a PIL image"),
        (lambda model: model.encode_query(None), "NoneType is neither a picture nor a list"),
        (lambda model: model.encode_document([{"text": " "}]), "document 0 has neither an image nor a text"),
        (lambda model: model.encode_document([{"title": "mug"}]), "document 0 has the field 'title'"),
        (lambda model: model.encode_document([3]), "document 0 is int; give a PIL image, bytes or a path"),
        (lambda model: model.encode_query([], batch_size=0), "batch_size is 0; it must be at least 1"),
        (lambda model: oclear.load(model.encoder.folder, device="cuda:99"), "device 'cuda:99' is not there"),
        (
            lambda model: oclear.load(model.encoder.folder, device="gpu"),
            "device 'gpu' is unknown; give one of auto, cpu",
        ),
        (lambda model: oclear.load("no/such/folder"), "there is no such folder"),
    ],
)
def test_mistakes_are_one_sentence_with_place_and_remedy(model: oclear.Model, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_unfinished_folders_and_unknown_settings_are_refused(tmp_path: Path, governed: oclear.Governed) -> None:
    with pytest.raises(ValueError, match=r"holds no ledger\.json"):
        oclear.Governed(tmp_path)
    with pytest.raises(ValueError, match=r"holds no training\.json"):
        oclear.Run(tmp_path)
    with pytest.raises(ValueError, match="policy has no field share"):
        oclear.govern(behaviour=[], queries=[], catalogue=[], out=tmp_path / "out", policy={"share": 1})
    with pytest.raises(ValueError, match="behaviour: the table is empty"):
        oclear.govern(behaviour=[], queries=[], catalogue=[], out=tmp_path / "out")
    with pytest.raises(ValueError, match="recipe.image has no setting 'step'"):
        oclear.train(governed, recipe={"image.step": 3}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_public_name_loads_and_has_a_docstring() -> None:
    for name in oclear.__all__:
        found = getattr(oclear, name)
        assert name == "__version__" or (found.__doc__ or "").strip(), name
    assert set(oclear.__all__) - {"__version__"} == set(oclear._SOURCES)


def test_a_run_is_pushed_with_its_card(run: oclear.Run) -> None:
    code = f"import oclear\nprint(oclear.Run({str(run.folder)!r}).push_to_hub('org/mine', tag='v1'))"
    with loopback_hub() as hub:
        changes = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, **changes},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert hub.endpoint in done.stdout
        files = hub.files("org/mine", "v1")
    assert {"README.md", "config.json", "model.safetensors", "query/config.json", "modules.json"} <= set(files)
    assert "was not evaluated on judged queries" in files["README.md"].decode()
