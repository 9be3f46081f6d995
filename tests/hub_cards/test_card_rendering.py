"""Rendering of the cards: every number comes from a result file."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from hub_cards.__main__ import main
from hub_cards.dataset_card import size_category
from hub_cards.formatting import cell, flat, metric, table
from hub_cards.model_card import nested
from hub_cards.render import SAMPLES, render_run
from hub_cards.results import ResultFile
from retrieval.__main__ import build_parser as retrieval_parser
from tests.support.example_run import METRICS, edit_json, metrics, write_run
from train.command import argument_parser as training_parser

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = re.compile(r"\{\{|\{%|\bundefined\b|Undefined|More Information Needed|\| (?:nan|None) \||TBD|FIXME")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first")


def test_both_cards_are_written_and_can_be_parsed(run: Path) -> None:
    written = render_run(run)
    assert written == [run / "hub" / "README.md", run / "dataset_card" / "README.md"]
    model, data = ModelCard.load(written[0]), DatasetCard.load(written[1])
    assert model.data["license"] == "apache-2.0"
    assert data.data["configs"][0] == {
        "config_name": "samples",
        "data_files": [{"split": "governed", "path": "samples/*.parquet"}],
    }
    assert not PLACEHOLDER.search(str(model))
    assert not PLACEHOLDER.search(str(data))


def test_model_index_has_the_metrics_of_unseen_categories(run: Path) -> None:
    card = ModelCard.load(render_run(run, repo_id="org/finder")[0])
    assert card.data["model_name"] == "finder"
    values = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data["eval_results"]}
    assert values["full-gallery", "recall_at_1"] == 0.4123
    assert values["full-gallery", "recall_at_10"] == 0.7456
    assert values["unseen-gallery", "recall_at_1"] == 0.61
    assert len(values) == 14
    assert {one.task_type for one in card.data["eval_results"]} == {"image-to-multimodal-retrieval"}


def test_main_result_is_shown_with_its_interval(run: Path) -> None:
    text = render_run(run)[0].read_text()
    assert "recall@1 0.412 [0.382, 0.442]" in text
    assert "| held-out queries of seen categories, full gallery | 0.830 [0.800, 0.860]" in text
    assert "| text_removed: this model, documents embedded without their text | 0.200 [0.170, 0.230]" in text


def test_changed_metric_changes_in_table_and_model_index(run: Path) -> None:
    before = render_run(run)[0].read_text()
    edit_json(run / "metrics.json", "unseen.full_gallery.map", 0.987)
    after = render_run(run)[0].read_text()
    assert "0.987" not in before
    assert after.count("0.987") == 2  # once in the table, once in the model-index


@pytest.mark.parametrize(
    ("steps", "text"), [(400, "a student, distilled without labels"), (0, "the mean of the weights of these members")]
)
def test_card_of_an_ensemble_describes_its_members(run: Path, steps: int, text: str) -> None:
    assert "from the same initial weights" not in render_run(run)[0].read_text()
    edit_json(run / "recipe.json", "ensemble.num_members", 3)
    edit_json(run / "recipe.json", "ensemble.distil_steps", steps)
    card = render_run(run)[0].read_text()
    assert "3 models were trained from the same initial weights" in card
    assert text in card


def test_card_names_the_loss_of_the_training(run: Path) -> None:
    assert "a softmax over class prototypes" in render_run(run)[0].read_text()
    edit_json(run / "recipe.json", "head.loss.kind", "proxy_anchor")
    assert "the ProxyAnchor loss" in render_run(run)[0].read_text()


def test_card_says_which_parts_of_the_fusion_are_not_trained(run: Path) -> None:
    card = render_run(run)[0].read_text()
    assert "text weight 0.4" in card
    assert "The 4 concepts are therefore the same mean of the tokens" in card
    edit_json(run / "hub" / "config.json", "text_strength", 0.0)
    card = render_run(run)[0].read_text()
    assert "Text weight 0 (" in card
    assert "concepts" not in card


NEEDED = [
    ("metrics.json", f"{place}.{name}")
    for place in ("unseen.full_gallery", "unseen.unseen_gallery", "seen.full_gallery")
    for name in ("recall_at_1", "recall_at_10", "mrr_at_10", "intervals.recall_at_1", "queries", "documents")
]
NEEDED += [
    ("metrics.json", "unseen.full_gallery.trec_recall_at_10"),
    ("metrics.json", "baselines.text_removed.mrr_at_10"),
]
NEEDED += [("metrics.json", f"governance.{key}") for key in ("rows_in", "kept_share", "category_pair_f1")]
NEEDED += [("metrics.json", "data.simulated"), ("ledger.json", "policy"), ("ledger.json", "stages")]
NEEDED += [("hub/config.json", key) for key in ("hidden_size", "text_strength", "num_concepts")]
NEEDED += [("recipe.json", "model.vision")]


@pytest.mark.parametrize(("name", "key"), NEEDED)
def test_missing_number_stops_rendering_and_is_named(run: Path, name: str, key: str) -> None:
    edit_json(run / name, key)
    with pytest.raises(ValueError, match=re.escape(name)) as error:
        render_run(run)
    assert key.rsplit(".", 1)[-1] in str(error.value)
    assert not (run / "hub" / "README.md").exists()
    assert not (run / "dataset_card").exists()


@pytest.mark.parametrize("value", ["0.4", True, [0.4]])
def test_value_that_is_not_a_number_stops_rendering(run: Path, value: object) -> None:
    edit_json(run / "metrics.json", "unseen.full_gallery.recall_at_1", value)
    with pytest.raises(ValueError, match="recall_at_1.*not a finite number"):
        render_run(run)


def test_nan_in_a_result_file_is_rejected(run: Path) -> None:
    path = run / "metrics.json"
    path.write_text(path.read_text().replace("0.4123", "NaN", 1))
    with pytest.raises(ValueError, match="NaN is not a valid JSON number"):
        render_run(run)


@pytest.mark.parametrize(
    "name", ["recipe.json", "training.json", "environment.json", "metrics.json", "ledger.json", "train.jsonl"]
)
def test_missing_file_is_named_with_the_command_that_writes_it(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink()
    assert main(["render", str(run)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert name in message
    assert "Write it with: " in message


def test_missing_attribution_stops_rendering(run: Path) -> None:
    (run / "ATTRIBUTION.md").unlink()
    with pytest.raises(ValueError, match=r"ATTRIBUTION\.md is missing"):
        render_run(run)


def test_attribution_of_the_data_folder_is_used(run: Path) -> None:
    (run / "data").mkdir()
    (run / "ATTRIBUTION.md").rename(run / "data" / "ATTRIBUTION.md")
    for path in render_run(run):
        assert "### Attribution" in path.read_text()
        assert "| twemoji | CC-BY-4.0 |" in path.read_text()


def test_card_says_simulated_exactly_for_simulated_data(run: Path) -> None:
    model, data = (path.read_text() for path in render_run(run))
    assert "SIMULATED" in model
    assert "SIMULATED" in data
    assert "simulated-clicks" in data
    edit_json(run / "metrics.json", "data.simulated", False)
    for path in render_run(run):
        assert "SIMULATED" not in path.read_text()
        assert "simulated-clicks" not in path.read_text()


def test_ledger_that_loses_rows_is_rejected(run: Path) -> None:
    path = run / "ledger.json"
    path.write_text(path.read_text().replace('"kept": 997', '"kept": 996'))
    with pytest.raises(ValueError, match="1000 rows in, but 996 kept"):
        render_run(run)


def test_ledger_table_shows_every_reason_with_its_count(run: Path) -> None:
    for path in render_run(run):
        assert "| admit: queries | 1000 | 997 | 3 |" in path.read_text()
        assert "| click_rates: behaviour | weak | 90 |" in path.read_text()


def test_data_card_shows_the_number_of_samples(run: Path) -> None:
    path = render_run(run)[1]
    assert "| query samples of split train | 800 |" in path.read_text()
    assert DatasetCard.load(path).data["size_categories"] == ["1K<n<10K"]


@pytest.mark.parametrize(("rows", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**8, "n>10M")])
def test_size_categories_are_those_of_the_hub(rows: int, name: str) -> None:
    assert size_category(rows) == name


def test_run_table_shows_seconds_and_the_evaluated_text_weights(run: Path) -> None:
    text = render_run(run)[0].read_text()
    assert "| seconds, total | 42.6 |" in text
    assert "| 0.4 | 0.43 | 0.75 |" in text
    assert "text.table" not in text
    edit_json(run / "training.json", "seconds")
    with pytest.raises(ValueError, match=r"training\.json lacks 'seconds'"):
        render_run(run)


def test_card_of_a_model_without_text_does_not_mention_text_usage(run: Path) -> None:
    edit_json(run / "hub" / "config.json", "text_config")
    edit_json(run / "recipe.json", "text.encoder")
    text = render_run(run)[0].read_text()
    assert "trained without a text encoder" in text
    assert "**Text.** Text weight" not in text
    assert "text=texts" not in text


def test_run_without_training_steps_has_no_curve(run: Path) -> None:
    (run / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"train\.jsonl is empty"):
        render_run(run)
    edit_json(run / "recipe.json", "image.steps", 0)
    assert "No training steps" in render_run(run)[0].read_text()


def test_path_of_this_machine_in_a_result_file_stops_rendering(run: Path) -> None:
    edit_json(run / "training.json", "features", "/srv/someone/features")
    with pytest.raises(ValueError, match="/srv/someone/features"):
        render_run(run)


def test_command_writes_samples(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(run), "--sample", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / SAMPLES[0]).read_text() == (run / "hub" / "README.md").read_text()
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("repo_id", ["nameonly", "a/b/c", "org/na me", "org/-x", "org/a--b", "org/x.git"])
def test_invalid_repository_name_is_rejected(run: Path, repo_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(run), "--repo-id", repo_id]) == 2
    assert "error: repository" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "card"), [(SAMPLES[0], ModelCard), (SAMPLES[1], DatasetCard)])
def test_committed_samples_are_complete_cards(name: str, card: type[ModelCard] | type[DatasetCard]) -> None:
    path = ROOT / "hub_cards" / name
    text = path.read_text()
    assert not PLACEHOLDER.search(text)
    parsed = card.load(path)
    assert parsed.data["tags"][0] == "oclear"
    assert len(parsed.text) > 1500


def test_python_code_of_the_cards_can_be_parsed(run: Path) -> None:
    for path in render_run(run):
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
        assert blocks
        for block in blocks:
            ast.parse(block)


def commands(card: str) -> list[list[str]]:
    return [shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", card, re.S) for line in block.splitlines()]


@pytest.mark.parametrize(("repo_id", "data_id"), [(None, None), ("org/finder", "org/clicks")])
def test_commands_of_the_cards_exist(run: Path, repo_id: str, data_id: str) -> None:
    model, data = (commands(path.read_text()) for path in render_run(run, repo_id=repo_id, dataset_repo_id=data_id))
    calls = [words[3:] for words in model if words[:3] == ["python", "-m", "retrieval"]]
    assert [retrieval_parser().parse_args(words).command for words in calls] == ["index", "search", "evaluate"]
    (training,) = [words[3:] for words in data if words[:3] == ["accelerate", "launch", "train/run.py"]]
    assert training_parser().parse_args(training).data is not None
    downloads = [words for words in model + data if words[0] == "hf"]
    assert len(downloads) == (2 if repo_id else 0)


def test_metric_is_shown_with_its_interval_and_a_required_one_must_exist() -> None:
    part = ResultFile("metrics.json:x", {"map": 0.25, "intervals": {}})
    assert metric(part, "map", interval=False) == "0.250"
    with pytest.raises(ValueError, match=r"intervals\.map"):
        metric(part, "map", interval=True)
    assert metric(ResultFile("m", metrics(0.5, 0.9)), "recall_at_1", interval=True) == "0.500 [0.470, 0.530]"


def test_tables_check_their_width_and_escape_pipes() -> None:
    assert table(["a", "b"], [["x|y", 1]]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |"
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("value", "shown"), [(0.00123456, "0.001235"), (3.0, "3"), (12000, "12,000"), (True, "True"), ("a\nb", "a b")]
)
def test_values_are_rounded_for_tables(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_nested_objects_become_dotted_rows() -> None:
    assert list(flat({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}]})) == [
        ("a.b", "1"),
        ("a.c", "1, 2"),
        ("d.0.e", "none"),
    ]


def test_headings_of_the_attribution_are_moved_two_levels_down() -> None:
    assert nested("# A\ntext\n## B") == "### A\ntext\n#### B"


def test_fixture_has_the_keys_of_the_demo() -> None:
    assert set(METRICS) >= {"unseen", "seen", "baselines", "governance"}


def test_a_run_without_evaluation_gets_a_card_that_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("metrics.json", "ledger.json", "ATTRIBUTION.md"):
        (run / name).unlink()
    assert main(["render", str(run), "--without-evaluation"]) == 0
    assert Path(capsys.readouterr().out.strip()) == run / "hub" / "README.md"
    card = ModelCard.load(run / "hub" / "README.md")
    text = str(card)
    assert "was not evaluated on judged queries" in text
    assert "observed or simulated: not stated by the publisher" in text
    assert not card.data.eval_results
    assert "recall@1" not in text.split("## How a document")[0].split("### What was published")[0]
    assert not PLACEHOLDER.search(text)
    assert main(["render", str(run), "--without-evaluation", "--sample", str(run)]) == 2
    (run / "training.json").unlink()
    assert main(["render", str(run), "--without-evaluation"]) == 2
    assert "training.json is missing" in capsys.readouterr().err
