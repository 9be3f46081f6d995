"""Images of an earlier run are reused, and nothing else depends on it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_governance.__main__ import main
from data_governance.image_cache import ImageCache, cache_key, load_cache
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.tables import Source, feature_column, source_of
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages import admit
from modeling_oclear import EfficientNetLiteConfig, OclearConfig, OclearModel
from tests.support.synthetic_shop import IMAGE, SyntheticShop, png, write_shop

POLICY = Policy(image_size=32)


def source(numbers: list[int]) -> Source:
    """Drawings by number; a negative one is no image."""
    cells = [{"bytes": png(n, style="filled") if n >= 0 else b"nothing", "path": None} for n in numbers]
    ids = [f"q{i}" for i in range(len(numbers))]
    return source_of(pa.table({"query_id": ids, "image": pa.array(cells, IMAGE)}), name="queries")


class CountingEncoder(Encoder):
    """The packaged encoder; counts the images that it embeds."""

    def __init__(self) -> None:
        super().__init__(None, threads=1)
        self.embedded = 0

    def features(self, squares_NSSC: np.ndarray, *, maps: list[dict[str, np.ndarray]] | None = None) -> np.ndarray:
        self.embedded += len(squares_NSSC)
        return super().features(squares_NSSC, maps=maps)


def facts_of(numbers: list[int], encoder: Encoder, cache: ImageCache | None = None) -> admit.ImageFacts:
    width = sum(encoder.block_widths(POLICY.image_size))
    return admit.image_facts(source(numbers), policy=POLICY, encoder=encoder, cache=cache or ImageCache(), width=width)


def committed(folder: Path, facts: admit.ImageFacts, encoder: Encoder) -> None:
    """Write the admit stage of a run with these queries and no documents."""
    rows = pa.table({name: facts.columns[name] for name in ("sha", "hash")})
    tables = {"queries": rows, "queries_features": pa.table({"features": feature_column(facts.features)})}
    tables |= {"documents": rows.slice(0, 0), "documents_features": tables["queries_features"].slice(0, 0)}
    notes = {"recipe": cache_key(POLICY, encoder), "blocks": encoder.block_widths(POLICY.image_size)}
    Workspace(folder).commit("admit", StageResult(tables=tables, notes=notes), digest="d", seconds=0)


def test_only_new_images_are_embedded_and_reused_ones_are_bit_equal(tmp_path: Path) -> None:
    first = CountingEncoder()
    facts = facts_of([0, 1, -1, 2, 3], first)
    assert facts.num_reused == 0
    assert not facts.features[2].any()
    committed(tmp_path, facts, first)

    again = CountingEncoder()
    cache = load_cache((None, tmp_path / "nowhere", tmp_path), cache_key(POLICY, first))
    found = facts_of([3, 9, 1, -1, 3], again, cache)
    assert (again.embedded, found.num_reused) == (1, 3)
    assert cache.block_widths == first.block_widths(POLICY.image_size)
    np.testing.assert_array_equal(found.features[[0, 2, 4]], facts.features[[4, 1, 4]])
    assert found.columns["hash"].take([0, 2]) == facts.columns["hash"].take([4, 1])
    assert found.columns["sha"].take([0, 2, 3]) == facts.columns["sha"].take([4, 1, 2])
    alone = facts_of([3, 9, 1, -1, 3], CountingEncoder())
    assert {name: column.to_pylist() for name, column in found.columns.items()} == {
        name: column.to_pylist() for name, column in alone.columns.items()
    }
    np.testing.assert_allclose(found.features, alone.features, atol=0.05)


@pytest.mark.parametrize("policy", [Policy(image_size=48), Policy(image_size=32, max_image_pixels=9)])
def test_a_cache_with_another_key_is_ignored(tmp_path: Path, policy: Policy) -> None:
    encoder = CountingEncoder()
    committed(tmp_path, facts_of([0], encoder), encoder)
    assert len(load_cache((tmp_path,), cache_key(POLICY, encoder)).row_of) == 1
    assert not load_cache((tmp_path,), cache_key(policy, encoder)).row_of


def own_model(folder: Path) -> Path:
    """A small random OCLEAR model, saved as training publishes it."""
    vision = EfficientNetLiteConfig(
        stem_channels=5, out_channels=(6, 7, 9), num_block_repeats=(1, 2, 1), kernel_sizes=(3, 5, 3),
        strides=(1, 2, 2), expand_ratios=(1, 2, 3), hidden_size=19,
    )  # fmt: skip
    torch.manual_seed(0)
    OclearModel(OclearConfig(vision_config=vision.to_dict(), text_config=None, hidden_size=27)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("oclear", [False, True])
def test_a_run_with_new_rows_keeps_category_keys_and_reuses_images(tmp_path: Path, oclear: bool) -> None:
    """An OCLEAR encoder gives two views, each with a projection that the incremental run reuses."""
    (tmp_path / "shop").mkdir()
    shop = write_shop(tmp_path / "shop", categories=6, queries=3, noise=0.0)
    if oclear:
        shop.more = ["--encoder", str(own_model(tmp_path / "hub"))]
    assert main(["run", *shop.arguments, "--out", str(tmp_path / "first")]) == 0
    projections = sorted(path.stem for path in (tmp_path / "first" / "stages" / "organise").glob("lens_?.parquet"))
    assert projections == (["lens_0", "lens_1"] if oclear else ["lens_0"])
    queries = pq.read_table(shop.folder / "queries.parquet")
    new = pa.table({"query_id": ["fresh"], "image": pa.array([{"bytes": png(2, style="filled", seed=99)}], IMAGE)})
    pq.write_table(pa.concat_tables([queries, new]), shop.folder / "queries.parquet")
    clicked = next(doc for doc, category in shop.document_truth.items() if category == 2)
    rows = pq.read_table(shop.folder / "behaviour.parquet")
    click = pa.table({"query_id": ["fresh"], "doc_id": [clicked], "clicks": [1]})
    pq.write_table(pa.concat_tables([rows, click]), shop.folder / "behaviour.parquet")

    words = [*shop.arguments, "--previous", str(tmp_path / "first")]
    assert main(["run", *words, "--out", str(tmp_path / "second")]) == 0
    notes = json.loads((tmp_path / "second" / "ledger.json").read_text())["notes"]["admit"]
    assert notes["images_taken_over"] == queries.num_rows + 12
    assert set(key_of_documents(tmp_path / "second")) == set(key_of_documents(tmp_path / "first"))

    assert main(["run", *words, "--incremental", "--out", str(tmp_path / "third")]) == 0
    facts = json.loads((tmp_path / "third" / "ledger.json").read_text())
    assert facts["notes"]["organise"]["incremental"]
    assert 1 <= facts["notes"]["organise"]["documents_touched"] < 12
    assert key_of_documents(tmp_path / "third") == key_of_documents(tmp_path / "first")
    placed = pq.read_table(tmp_path / "third" / "samples", columns=["sample_id"]).column("sample_id").to_pylist()
    assert "fresh" in placed


def test_an_incremental_run_without_a_usable_previous_run_is_an_error(
    shop: SyntheticShop, governed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *shop.arguments, "--incremental"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--incremental needs --previous" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(governed / "categories.parquet", bare)
    shutil.copytree(governed / "samples", bare / "samples")
    assert main([*words, "--out", str(tmp_path / "out"), "--previous", str(bare)]) == 2
    assert "lacks the stage admit" in capsys.readouterr().err
    shutil.copytree(governed / "stages", bare / "stages")
    (bare / "stages" / "organise" / "lens_0.parquet").unlink()
    assert main([*words, "--out", str(tmp_path / "out"), "--previous", str(bare)]) == 2
    assert "kept no learned space" in capsys.readouterr().err


def key_of_documents(governed: Path) -> dict[str, str]:
    categories = pq.read_table(governed / "categories.parquet", columns=["category_id", "category_key"])
    key = dict(zip(*(categories.column(c).to_pylist() for c in categories.column_names), strict=True))
    filters = [("side", "=", "document")]
    rows = pq.read_table(
        governed / "samples", columns=["sample_id", "side", "category_id"], filters=filters
    ).to_pylist()
    return {row["sample_id"]: key[row["category_id"]] for row in rows}
