"""Checks of a folder before its upload, and the dry run of the push command."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from hub_cards.__main__ import main
from hub_cards.publishable import dataset_files, machine_traces, model_files, this_host
from hub_cards.push import plan
from hub_cards.render import render_run
from tests.support.example_run import CONFIG, edit_json, write_governed, write_model_folder, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "hub")


def test_complete_folder_passes_and_every_file_is_listed(folder: Path) -> None:
    planned = {file.path_in_repo: file for file in model_files(folder)}
    assert set(planned) == {
        "README.md",
        "config.json",
        "configuration_oclear.py",
        "fusion_oclear.py",
        "model.safetensors",
        "modeling_oclear.py",
        "query/config.json",
        "query/model.safetensors",
    }
    weights = (folder / "model.safetensors").read_bytes()
    assert planned["model.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert planned["model.safetensors"].size == len(weights)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl", ".pth"])
def test_pickled_weights_are_rejected_in_every_subfolder(folder: Path, suffix: str) -> None:
    (folder / "query" / f"weights{suffix}").write_bytes(pickle.dumps([1.0]))
    with pytest.raises(ValueError, match=f"query/weights{suffix}.*only safetensors"):
        model_files(folder)


def test_pickle_named_safetensors_is_rejected(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": 1.0}) * 10)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        model_files(folder)


@pytest.mark.parametrize("name", ["train.jsonl.gz", ".env", "notes.docx", "checkpoint"])
def test_file_that_is_not_part_of_a_model_is_rejected(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(ValueError, match=f"'{name}' is not part of a model folder"):
        model_files(folder)


def test_links_to_files_and_folders_are_rejected(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    link = folder / "extra.json"
    link.symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match=r"extra\.json is a link"):
        model_files(folder)
    link.unlink()
    (tmp_path / "elsewhere").mkdir()
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="more is a link"):
        model_files(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("README.md", "needs a card"),
        ("config.json", "config.json is missing"),
        ("query/config.json", "config.json is missing"),
        ("model.safetensors", "no weights to publish"),
        ("query/model.safetensors", "query has no model"),
        ("configuration_oclear.py", r"remote code 'configuration_oclear\.py' is missing"),
        ("fusion_oclear.py", r"remote code 'fusion_oclear\.py' is missing"),
    ],
)
def test_missing_required_file_is_rejected(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=message):
        model_files(folder)


def test_card_without_metadata_is_rejected(folder: Path) -> None:
    (folder / "README.md").write_text("# A model\n")
    with pytest.raises(ValueError, match="no metadata block"):
        model_files(folder)


def test_config_without_auto_map_is_rejected(folder: Path) -> None:
    edit_json(folder / "config.json", "auto_map.AutoModel")
    with pytest.raises(ValueError, match="auto_map lacks"):
        model_files(folder)


def test_remote_code_of_another_repository_is_rejected(folder: Path) -> None:
    edit_json(folder / "config.json", "auto_map.AutoModel", "other/repo--modeling_oclear.OclearModel")
    with pytest.raises(ValueError, match="of this same folder"):
        model_files(folder)


def test_remote_code_of_the_processor_is_required(folder: Path) -> None:
    content = {"auto_map": {"AutoProcessor": "processing_oclear.OclearProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"processing_oclear\.py' is missing"):
        model_files(folder)


TRACES = [
    "/" + "home/someone/data/emoji",
    "C:\\\\Users\\\\someone\\\\model",
    "/tmp/run/hub",
    "~/models/x",
    "10.1.2.3",
    "trainbox-17",
]


@pytest.mark.parametrize("trace", TRACES)
def test_path_or_host_of_this_machine_is_rejected_in_json_and_card(folder: Path, trace: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG)[:-1] + f', "from": "{trace}"}}')
    with pytest.raises(ValueError, match=r"config\.json, line 1: .* names this machine"):
        model_files(folder, host_names=["trainbox-17"])
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\nfrom {trace}\n")
    with pytest.raises(ValueError, match=r"README\.md, line 5: .* names this machine"):
        model_files(folder, host_names=["trainbox-17"])


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/data/x",
        "runs/demo/hub",
        "and/or",
        "torch 2.13.0",
        "a /tag/ here",
        "3.10.2.1",
        "$HOME/tmp/x",
    ],
)
def test_ordinary_text_is_not_taken_for_a_path_or_host(text: str) -> None:
    assert not list(machine_traces(text, ["trainbox-17"]))


@pytest.mark.parametrize(
    ("name", "kept"), [("demo", []), ("ubuntu", []), ("trainbox-17", ["trainbox-17"]), ("gpu4", ["gpu4"])]
)
def test_host_name_that_is_an_ordinary_word_is_ignored(
    name: str, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: name)
    assert this_host() == kept


def test_unreadable_file_gives_one_error_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff\xfe")
    assert main(["push", str(folder), "--repo-id", "org/finder"]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_vocabulary_files_are_not_searched_for_paths(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"/home/x": 1}}))
    assert len(model_files(folder)) == 9


def test_governed_data_is_listed_without_dropped_rows_and_stages(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    card = render_run(run)[1]
    governed = write_governed(tmp_path / "governed")
    for name in ("dropped", "stages"):
        (governed / name).mkdir()
        (governed / name / "part.parquet").write_bytes(b"x")
    names = [file.path_in_repo for file in dataset_files(governed, card=card)]
    assert names == [
        "README.md",
        "samples/part-0.parquet",
        "categories.parquet",
        "category_map.parquet",
        "ledger.parquet",
        "ledger.json",
    ]
    (governed / "categories.parquet").unlink()
    with pytest.raises(ValueError, match=r"lacks categories\.parquet"):
        dataset_files(governed, card=card)


@pytest.mark.parametrize("name", ["/srv/someone/cat.png", "../cat.png", "~/cat.png"])
def test_image_with_an_absolute_path_is_rejected(tmp_path: Path, name: str) -> None:
    card = render_run(write_run(tmp_path / "first"))[1]
    governed = write_governed(tmp_path / "governed", image_path=name)
    with pytest.raises(ValueError, match="Use plain file names"):
        dataset_files(governed, card=card)


def test_dry_run_lists_all_files_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = write_run(tmp_path / "first") / "hub"
    (hub / "config.json").unlink()
    hub.rmdir()
    write_model_folder(hub)
    render_run(hub.parent)
    monkeypatch.setattr("hub_cards.push.HfApi", None)  # any use of the client would fail
    before = {path: path.read_bytes() for path in hub.rglob("*") if path.is_file()}
    assert main(["push", str(hub), "--repo-id", "org/finder", "--revision", "v1"]) == 0
    shown = capsys.readouterr().out
    assert "org/finder (public; created if it is missing)" in shown
    assert hashlib.sha256(before[hub / "model.safetensors"]).hexdigest() in shown
    assert "query/model.safetensors" in shown
    assert "8 files" in shown
    assert "tag v1" in shown
    assert "dry run: nothing was sent" in shown
    assert before == {path: path.read_bytes() for path in hub.rglob("*") if path.is_file()}


def test_push_writes_the_repository_into_the_card_and_keeps_its_metrics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "first")
    write_model_folder(tmp_path / "model")
    for path in sorted((tmp_path / "model").rglob("*")):
        target = run / "hub" / path.relative_to(tmp_path / "model")
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
    local = render_run(run)[0].read_text()
    governed = write_governed(tmp_path / "governed")
    uploads = plan(run / "hub", repo_id="org/finder", dataset=governed, dataset_repo_id="org/clicks")
    assert [upload.kind for upload in uploads] == ["dataset", "model"]
    cards = [next(file.source for file in upload.files if file.path_in_repo == "README.md") for upload in uploads]
    data_card, model_card = (card.decode() if isinstance(card, bytes) else "" for card in cards)
    assert 'DATA = "org/clicks"' in data_card
    assert 'MODEL = "org/finder"' in model_card
    assert "runs/first" in local
    assert "runs/first" not in model_card + data_card
    assert "datasets:\n- org/clicks" in model_card
    results = "| unseen categories, full gallery |"
    assert local[local.index(results) :][:200] == model_card[model_card.index(results) :][:200]


def test_without_token_nothing_is_sent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "first")
    (folder / "README.md").write_text(render_run(run)[0].read_text())
    monkeypatch.setattr("hub_cards.push.get_token", lambda: None)
    assert main(["push", str(folder), "--repo-id", "org/finder", "--yes"]) == 2
    assert "error: no token for the Hub: set HF_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dataset", "governed"], ["--dataset-repo-id", "org/data"]])
def test_dataset_without_repository_or_the_reverse_is_rejected(
    folder: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(folder), "--repo-id", "org/finder", *words]) == 2
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize("yes", [[], ["--yes"]])
@pytest.mark.parametrize("tag", ["two words", "-x", "refs/heads/main", "a" * 101])
def test_invalid_tag_is_rejected_before_anything_is_sent(
    folder: Path,
    tmp_path: Path,
    tag: str,
    yes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "README.md").write_text(render_run(write_run(tmp_path / "first"))[0].read_text())
    monkeypatch.setattr("hub_cards.push.HfApi", None)
    assert main(["push", str(folder), "--repo-id", "org/finder", *yes, f"--revision={tag}"]) == 2
    assert "is not a valid tag name" in capsys.readouterr().err
