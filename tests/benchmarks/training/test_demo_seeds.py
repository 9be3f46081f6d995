"""Means over seeds, worked by hand, and the table that README shows of them."""

from typing import Any

from benchmarks.render import pages
from benchmarks.training import demo_seeds


def metrics_of(value: float) -> dict[str, Any]:
    scores = {"recall_at_1": value, "recall_at_10": value + 0.2, "mrr_at_10": value + 0.1, "documents": 40}
    return {
        "unseen": {"full_gallery": scores, "unseen_gallery": scores},
        "seen": {"full_gallery": scores},
        "baselines": {"image_only_documents": {**scores, "recall_at_1": value - 0.1}},
        "baselines_seen": {"image_only_documents": scores},
        "governance": {"truth_documents_per_category": 2.0},
        "timings": {"emoji": 3.0},
        "training": {"text": {"strength": 0.2, "attention": {}}},
    }


def test_a_summary_holds_means_over_seeds_and_the_gain_over_image_only() -> None:
    found = demo_seeds.summary("hard", {0: metrics_of(0.4), 1: metrics_of(0.6)})
    assert found["mean"]["oclear"]["recall_at_1"] == 0.5
    assert found["mean"]["oclear"]["seen_recall_at_10"] == 0.7
    assert found["fused_minus_image_only"]["recall_at_1"] == 0.1
    assert found["fused_minus_image_only"]["seen_recall_at_1"] == 0.0
    assert found["chance_recall_at_10"] == 0.5
    assert found["strengths"] == {0: 0.2, 1: 0.2}


def test_a_system_measured_with_one_seed_says_so() -> None:
    first = metrics_of(0.4)
    first["baselines"]["zero_shot_image"] = first["baselines_seen"]["zero_shot_image"] = first["seen"]["full_gallery"]
    found = demo_seeds.summary("hard", {0: first, 1: metrics_of(0.6)})
    assert found["mean"]["zero_shot_image"]["seeds"] == 1
    assert found["mean"]["oclear"]["seeds"] == 2
    assert found["mean"]["zero_shot_image"]["recall_at_1"] == 0.4


def test_the_results_table_shows_what_was_measured_and_nothing_else() -> None:
    table = pages.results_table(demo_seeds.summary("hard", {0: metrics_of(0.4), 1: metrics_of(0.6)}))
    assert table[2] == f"| {pages.SYSTEMS['oclear']} | 0.500 | 0.700 | 0.600 | 0.500 | 0.700 | 2 |"
    assert not any("frozen ImageNet" in line for line in table)
