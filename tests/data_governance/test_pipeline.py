"""The whole pipeline on a synthetic shop, through the command line."""

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import ViTConfig, ViTModel

from data_governance import pipeline
from data_governance.__main__ import main, recall_line
from data_governance.inputs import mapping
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.tables import feature_matrix
from data_governance.policy import Policy
from data_governance.stages import click_rates
from tests.support.synthetic_shop import SyntheticShop, write_shop

STAGES = [step.name for step in pipeline.PIPELINE]
TABLES = ["categories.parquet", "category_map.parquet", "ledger.parquet"]


def labels(governed: Path, side: str) -> dict[str, int]:
    table = pq.read_table(governed / "samples", columns=["sample_id", "side", "category_id"])
    rows = zip(*(table.column(c).to_pylist() for c in ("sample_id", "side", "category_id")), strict=True)
    return {row_id: category for row_id, of, category in rows if of == side}


def same_tables(a: Path, b: Path) -> None:
    for name in TABLES:
        assert pq.read_table(a / name).equals(pq.read_table(b / name)), name
    assert pq.read_table(a / "samples").equals(pq.read_table(b / "samples"))


def test_true_categories_are_recovered_from_noisy_clicks(large_shop: SyntheticShop, large_governed: Path) -> None:
    documents, queries = labels(large_governed, "document"), labels(large_governed, "query")
    assert set(documents) == set(large_shop.document_truth)
    votes: dict[int, Counter[int]] = {}
    for doc_id, category in documents.items():
        votes.setdefault(category, Counter())[large_shop.document_truth[doc_id]] += 1
    majority = {category: count.most_common(1)[0][0] for category, count in votes.items()}
    right = np.mean([majority[category] == large_shop.query_truth[query_id] for query_id, category in queries.items()])
    assert right >= 0.95
    assert len(queries) >= 0.85 * len(large_shop.query_truth)
    pairs = sum(len(votes[c]) == 1 and sum(votes[c].values()) == 2 for c in votes)
    assert pairs >= 20, f"{pairs} of 24 pairs of documents"


def test_every_input_row_is_kept_or_dropped_with_a_reason(shop: SyntheticShop, governed: Path) -> None:
    facts = json.loads((governed / "ledger.json").read_text())
    for name in ("behaviour", "queries", "catalogue"):
        rows = facts["rows"][name]
        assert rows["in"] == pq.read_metadata(shop.folder / f"{name}.parquet").num_rows
        assert rows["in"] == rows["kept"] + rows["dropped"]
        assert pq.read_metadata(governed / "dropped" / f"{name}.parquet").num_rows == rows["dropped"]
    assert len(labels(governed, "query")) == facts["rows"]["queries"]["kept"]
    assert len(labels(governed, "document")) == facts["rows"]["catalogue"]["kept"]


def test_samples_and_categories_have_the_declared_columns(governed: Path) -> None:
    samples = pq.read_table(governed / "samples")
    names = ["sample_id", "side", "image", "text", "category_id", "weight", "split"]
    assert samples.column_names == names
    categories = pq.read_table(governed / "categories.parquet")
    assert categories.column("category_id").to_pylist() == list(range(categories.num_rows))
    assert len(set(categories.column("category_key").to_pylist())) == categories.num_rows
    assert set(samples.column("category_id").to_pylist()) == set(range(categories.num_rows))
    split = dict(zip(samples.column("category_id").to_pylist(), samples.column("split").to_pylist(), strict=True))
    rows = zip(samples.column("category_id").to_pylist(), samples.column("split").to_pylist(), strict=True)
    assert all(split[category] == name for category, name in rows), "a category is split"
    assert set(split.values()) == {"train", "validation"}


def test_a_killed_run_resumes_after_a_complete_stage(shop: SyntheticShop, governed: Path, tmp_path: Path) -> None:
    again = tmp_path / "governed"
    shutil.copytree(governed, again)
    for name in ("clean", "merge_split", "balance"):
        shutil.rmtree(again / "stages" / name)
    (again / "stages" / ".clean.partial").mkdir()
    (again / "stages" / ".clean.partial" / "queries.parquet").write_bytes(b"half a file")
    before = (again / "stages" / "organise" / "stage.json").stat().st_mtime_ns
    assert main(["run", *shop.arguments, "--out", str(again)]) == 0
    assert (again / "stages" / "organise" / "stage.json").stat().st_mtime_ns == before
    assert not list((again / "stages").glob(".*.partial"))
    same_tables(governed, again)


def test_the_same_inputs_and_seed_give_equal_tables(shop: SyntheticShop, governed: Path, tmp_path: Path) -> None:
    assert main(["run", *shop.arguments, "--out", str(tmp_path / "again")]) == 0
    same_tables(governed, tmp_path / "again")


def test_another_policy_reruns_the_stages_that_read_it_and_keeps_decoded_images(
    shop: SyntheticShop, governed: Path, tmp_path: Path
) -> None:
    again = tmp_path / "governed"
    shutil.copytree(governed, again)
    (tmp_path / "policy.toml").write_text("min_query_margin = 0.9\n")
    before = {name: (again / "stages" / name / "stage.json").stat().st_mtime_ns for name in STAGES}
    assert main(["run", *shop.arguments, "--out", str(again), "--policy", str(tmp_path / "policy.toml")]) == 0
    after = {name: (again / "stages" / name / "stage.json").stat().st_mtime_ns for name in STAGES}
    assert after["admit"] == before["admit"]
    assert after["organise"] != before["organise"]
    assert len(labels(again, "query")) < len(labels(governed, "query"))


def test_an_edited_stage_and_all_later_ones_are_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {step.name: step for step in pipeline.PIPELINE}
    chain = ["start"]
    for step in steps.values():
        chain.append(pipeline.stage_digest(chain[-1], step, asdict(Policy())))
    monkeypatch.setattr(mapping, "source_digest", lambda *modules: "edited" if click_rates in modules else "as it was")
    first = [pipeline.stage_digest("start", steps[name], {}) for name in ("admit", "click_rates")]
    monkeypatch.setattr(mapping, "source_digest", lambda *modules: "as it was")
    second = [pipeline.stage_digest("start", steps[name], {}) for name in ("admit", "click_rates")]
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert len(set(chain)) == len(chain)


def test_category_keys_of_a_previous_run_are_kept(shop: SyntheticShop, governed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(governed / "stages", again / "stages")
    assert main(["run", *shop.arguments, "--out", str(again), "--previous", str(governed)]) == 0
    events = pq.read_table(again / "category_map.parquet")
    assert set(events.column("event").to_pylist()) == {"kept"}
    first = pq.read_table(governed / "category_map.parquet")
    assert set(first.column("event").to_pylist()) == {"new"}


def test_a_run_without_leaf_and_with_one_style_succeeds(tmp_path: Path) -> None:
    write_shop(tmp_path, categories=6, queries=4)
    catalogue = pq.read_table(tmp_path / "catalogue.parquet").drop_columns(["leaf"])
    pq.write_table(catalogue.take(list(range(0, catalogue.num_rows, 2))), tmp_path / "catalogue.parquet")
    arguments = SyntheticShop(tmp_path).arguments
    assert main(["run", *arguments, "--out", str(tmp_path / "out")]) == 0
    facts = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert facts["notes"]["organise"]["round_2"]["sources"] == 1
    assert any(row["reason"] == "unknown_document" for row in facts["decisions"])


def test_vectors_have_unit_length_after_reading_a_stage(governed: Path) -> None:
    table = pq.read_table(governed / "stages" / "organise" / "queries.parquet")
    length = np.linalg.norm(feature_matrix(table.column("vector")), axis=1)
    np.testing.assert_allclose(length, 1, atol=5e-3)


def test_any_saved_vision_model_can_be_the_encoder_with_its_own_input_size(shop: SyntheticShop, tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=37 * 2,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=37,
        image_size=48,
        patch_size=16,
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    scale = {"size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(scale))
    encoder = Encoder(tmp_path / "vit", threads=1)
    features = encoder.features(np.zeros((3, 112, 112, 3), dtype=np.uint8))
    assert encoder.block_widths(112) == [74, 108]
    assert features.shape == (3, 182)
    assert encoder.name.startswith("vit ")


def test_the_command_prints_search_method_and_recall() -> None:
    notes = {"prototype_search": "PQ32x4fs, re-ranked x10", "prototype_recall": 0.9981, "neighbour_recall": 0.46}
    text = recall_line({**notes, "relabelling": "refused: the margins do not separate"})
    assert text.startswith(
        "clean: nearest prototypes by PQ32x4fs, re-ranked x10, recall 0.998; neighbours, recall 0.460"
    )
    assert text.endswith("relabelling refused: the margins do not separate")
