"""The quality table: its synthetic data, its trainings, its summary."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.head import quality, quality_run, synthetic_set
from benchmarks.head.step import LinearMap

SIZE = synthetic_set.SyntheticSize(classes=150, unseen=45, leaf_size=13, samples_per_class=3)
SETTINGS = quality_run.QualitySettings(made=SIZE, steps=8, batch_size=32, hidden_size=6, hard_refresh_every=4)
WORDS = ["--classes", "150", "--unseen", "45", "--steps", "3", "--batch-size", "16", "--seeds", "0", "--noise", "0"]
WORDS += ["--rates", "1", "0.1", "--forms", "full", "hard_logq", "--filters", "off", "--workers", "1"]


def test_the_requested_share_of_labels_is_wrong_and_a_part_of_them_stays_in_the_leaf() -> None:
    size = dataclasses.replace(SIZE, classes=2000, unseen=500, leaf_size=50)
    clean, noisy = synthetic_set.synthetic_set(size, 0.0), synthetic_set.synthetic_set(size, 0.4)
    assert torch.equal(clean.label_N, clean.true_N)
    assert torch.equal(clean.feature_NF, noisy.feature_NF)
    is_wrong = noisy.label_N != noisy.true_N
    assert abs(float(is_wrong.double().mean()) - 0.4) < 0.03
    same_leaf = noisy.leaf_C[noisy.label_N] == noisy.leaf_C[noisy.true_N]
    assert abs(float(same_leaf[is_wrong].double().mean()) - 0.27) < 0.05
    assert 0 <= int(noisy.label_N.min()) <= int(noisy.label_N.max()) < 2000
    assert clean.fingerprint != noisy.fingerprint


def test_every_unseen_category_has_queries_and_one_document() -> None:
    made = synthetic_set.synthetic_set(SIZE, 0.2)
    assert made.document_UF.shape == (45, synthetic_set.FEATURES)
    assert torch.bincount(made.query_class_Q).tolist() == [2] * 45
    assert abs(float(made.feature_NF.mean())) < 1e-5
    # The same set again, from its seed alone.
    synthetic_set.synthetic_set.cache_clear()
    assert synthetic_set.synthetic_set(SIZE, 0.2).fingerprint == made.fingerprint


def test_recall_at_1_in_chunks_equals_that_of_all_products() -> None:
    made = synthetic_set.synthetic_set(SIZE, 0.0)
    encoder = LinearMap(synthetic_set.FEATURES, 6, seed=0)
    with torch.no_grad():
        table = encoder(made.query_QF) @ encoder(made.document_UF).T
    expected = float((table.argmax(dim=1) == made.query_class_Q).double().mean())
    assert quality_run.recall_at_1(encoder, made, at_once=7) == pytest.approx(expected)
    assert 0 < expected < 1


@pytest.mark.parametrize(("rate", "form"), [(1.0, "full"), (0.1, "uniform"), (0.1, "uniform_logq"), (0.1, "hard_logq")])
@pytest.mark.parametrize("filtered", [False, True])
def test_every_kind_of_training_runs_and_records_its_settings(rate: float, form: str, filtered: bool) -> None:
    one = quality_run.QualityRun(noise=0.2, rate=rate, form=form, filtered=filtered, seed=1)
    found = quality_run.train_and_score(one, SETTINGS)
    assert found["queries"] == 90
    assert 0 <= found["recall_at_1"] <= 1
    assert (found["rows_a_step"] == 150) == (rate == 1)
    assert found["settings"] == dataclasses.asdict(SETTINGS)
    assert quality_run.train_and_score(one, SETTINGS)["loss_end"] == found["loss_end"]


def test_forms_and_filter_change_the_loss() -> None:
    one = quality_run.QualityRun(noise=0.4, rate=0.1, form="uniform", filtered=False, seed=0)
    kinds = [one, dataclasses.replace(one, form="uniform_logq"), dataclasses.replace(one, form="hard_logq")]
    kinds.append(dataclasses.replace(one, filtered=True))
    settings = dataclasses.replace(SETTINGS, conflict_delta=0.0)
    assert len({quality_run.train_and_score(kind, settings)["loss_end"] for kind in kinds}) == 4


def test_training_improves_recall_on_unseen_categories() -> None:
    settings = dataclasses.replace(SETTINGS, made=dataclasses.replace(SIZE, classes=600), steps=60, hidden_size=16)
    one = quality_run.QualityRun(noise=0.0, rate=1.0, form="full", filtered=False, seed=0)
    found = quality_run.train_and_score(one, settings)
    assert found["recall_at_1"] > found["recall_at_1_before"]


def test_logq_removes_most_of_the_bias() -> None:
    # At a small scale no single class makes up the denominator, so that few draws tell its mean.
    settings = dataclasses.replace(SETTINGS, scale=4.0)
    bias = quality_run.loss_bias(settings, rates=[0.1], draws=20, steps=2)
    plain, corrected = (row["bias"] for row in bias["rows"])
    assert plain < 0
    assert abs(corrected) < abs(plain) / 2


def test_finished_trainings_are_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, path = tmp_path / "cells", tmp_path / "quality.json"
    assert quality.main([*WORDS, "--out", str(out), "--json", str(path)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "bias.json",
        "noise0_rate0.1_hard_logq_seed0.json",
        "noise0_rate1_full_seed0.json",
    ]
    first = json.loads(path.read_text())
    assert [row["form"] for row in first["summary"]] == ["full", "hard_logq"]
    (out / "noise0_rate1_full_seed0.json").unlink()
    assert quality.main([*WORDS, "--out", str(out), "--json", str(path)]) == 0
    assert "2 trainings, 1 of them finished before" in capsys.readouterr().out
    second = json.loads(path.read_text())
    assert [row["recall_at_1"] for row in second["summary"]] == [row["recall_at_1"] for row in first["summary"]]


def test_results_of_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--no-bias", "--out", str(tmp_path)]
    assert quality.main(words) == 0
    assert quality.main([*words, "--delta", "0.3"]) == 2
    assert "has other settings" in capsys.readouterr().err


def test_forms_without_a_matching_rate_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--rates", "0.1", "--forms", "full", "--out", str(tmp_path)]) == 2
    assert "no training is left" in capsys.readouterr().err


def run_result(recall: float, seed: int, **changed: Any) -> dict[str, Any]:
    run = {"noise": 0.0, "rate": 1.0, "form": "full", "filtered": False, "seed": seed, "recall_at_1": recall}
    cost = {"rows_a_step": 100.0, "seconds": 6.0, "queries": 90, "fingerprint": "x", "recall_at_1_before": 0.1}
    return run | cost | changed


def test_the_summary_has_means_and_deviations_over_seeds() -> None:
    runs = [run_result(0.5, 0), run_result(0.7, 1), run_result(0.4, 0, rate=0.1, form="uniform")]
    found = quality.collect(runs, SETTINGS, None)
    assert [(row["rate"], row["recall_at_1"], row["deviation"]) for row in found["summary"]] == [
        (1.0, 0.6, 0.1414),
        (0.1, 0.4, None),
    ]
    assert [row["minus_full"] for row in found["summary"]] == [[0.0, 0.0], [-0.1, None]]  # seed by seed
    assert found["core_minutes"] == 0.3
    assert found["full_softmax_in_range"] is True
    assert quality.collect([run_result(0.81, 0)], SETTINGS, None)["full_softmax_in_range"] is False
