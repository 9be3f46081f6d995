"""Push of an adapter and its base model to two repositories, and loading."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_push_end_to_end import push, python_blocks, stranger

from hub_cards.adapter import plan_adapter
from hub_cards.publishable import machine_traces
from modeling_oclear import publish
from tests.support.example_run import ATTRIBUTION
from tests.support.loopback_hub import loopback_hub
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.lora import add_adapters, export_adapter
from train.encoders.pair import EncoderPair
from train.recipes.registry import recipe_by_name

# peft 0.21 reads this attribute of transformers 5.23 under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ADAPTER, BASE = "org/finder-adapter", "org/finder-base"
EMBED = (
    "import torch\nfrom transformers import AutoModel, AutoProcessor\n"
    "from peft import AutoPeftModelForFeatureExtraction as Auto\n"
    "processor = AutoProcessor.from_pretrained({base!r}, trust_remote_code=True)\n"
    "words = processor(text=['thing a', 'other b', 'c'])\n"
    "pixels = torch.randn(3, 3, 37, 37, generator=torch.Generator().manual_seed(0))\n"
    "for kind, name in ((Auto, {adapter!r}), (AutoModel, {hub!r}), (AutoModel, {base!r})):\n"
    "    model = kind.from_pretrained(name, trust_remote_code=True).eval()\n"
    "    with torch.no_grad():\n"
    "        given = dict(input_ids=words['input_ids'], attention_mask=words['attention_mask'])\n"
    "        found = model.get_document_embeds(pixel_values=pixels, **given).embeds\n"
    "        print(torch.cat([model.get_query_embeds(pixels), found]).flatten().tolist())\n"
)


def write_adapter_run(run: Path) -> Path:
    """A run folder with a trained-looking adapter on the image encoder, its base and the merged model."""
    recipe = recipe_by_name("tiny").with_changes({"image.lora.rank": 2})
    base, processor = build_model(recipe, seed=0)
    encoders = EncoderPair(build_model(recipe, seed=0)[0], frozen_stages=recipe.model.frozen_stages)
    add_adapters(encoders.get_submodule("vision"), recipe, seed=0)
    torch.manual_seed(0)
    weights = {
        name: value + 0.1 * torch.randn_like(value) if ".lora_" in name or name.startswith("image_head") else value
        for name, value in encoders.double().state_dict().items()
    }
    weights = {name: value.abs() if name.endswith("_std") else value for name, value in weights.items()}
    model, _ = with_image_weights(recipe, weights, seed=0)
    torch.nn.init.normal_(model.fusion.gate.weight, std=0.5)
    export_adapter(run, base=base, model=model, processor=processor, weights=weights, recipe=recipe)
    publish(model, processor, run / "hub")
    (run / "recipe.json").write_text(json.dumps(recipe.to_json()))
    (run / "ATTRIBUTION.md").write_text(ATTRIBUTION)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter_run(tmp_path_factory.mktemp("adapter") / "first")


@pytest.fixture(scope="module")
def pushed(run: Path) -> Iterator[SimpleNamespace]:
    folder = run.parent
    with loopback_hub() as hub:
        words = ["--repo-id", ADAPTER, "--base-repo-id", BASE, "--yes"]
        done = push(hub, folder / "home", run / "adapter", *words)
        assert done.returncode == 0, done.stderr
        yield SimpleNamespace(hub=hub, run=run, folder=folder, output=done.stdout)


def test_adapter_loaded_from_the_hub_gives_the_embeddings_of_the_merged_model(pushed: SimpleNamespace) -> None:
    code = EMBED.format(base=BASE, adapter=ADAPTER, hub=str(pushed.run / "hub"))
    loaded, merged, base = (
        torch.tensor(json.loads(line)) for line in stranger(pushed.hub, pushed.folder / "reader", code).splitlines()
    )
    assert loaded.shape == (6 * 20,)
    torch.testing.assert_close(loaded, merged, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(base, merged, atol=1e-2)


def test_pushed_adapter_names_the_repository_of_its_base_model(pushed: SimpleNamespace) -> None:
    there = json.loads(pushed.hub.files(ADAPTER)["adapter_config.json"])
    here = json.loads((pushed.run / "adapter" / "adapter_config.json").read_text())
    assert there["base_model_name_or_path"] == BASE
    assert here == {**there, "base_model_name_or_path": "../base"}
    assert pushed.output.index(f"/{BASE} (") < pushed.output.index(f"/{ADAPTER} (")


def test_no_pushed_file_and_no_file_of_the_run_names_the_machine(pushed: SimpleNamespace) -> None:
    found = [*pushed.hub.files(ADAPTER).items(), *pushed.hub.files(BASE).items()]
    found += [
        (path.name, path.read_bytes()) for side in ("adapter", "base") for path in (pushed.run / side).rglob("*.*")
    ]
    for name, content in found:
        assert str(pushed.folder).encode() not in content, name
        if name.endswith((".json", ".md")) and not name.startswith("tokenizer"):
            assert not list(machine_traces(content.decode(), [])), name


def test_cards_are_complete_and_the_usage_code_of_the_adapter_runs(pushed: SimpleNamespace) -> None:
    card = pushed.hub.files(ADAPTER)["README.md"].decode()
    assert f"base_model: {BASE}" in card
    assert "| image encoder | rank 2 on 3 layers |" in card
    assert "| fusion | full weights |" in card
    assert "twemoji" in card
    assert "loads it together with an adapter" in pushed.hub.files(BASE)["README.md"].decode()
    (code,) = python_blocks(card)
    assert stranger(pushed.hub, pushed.folder / "usage", code).startswith("tensor([[")


def test_invalid_adapter_or_repository_is_rejected(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "run"
    shutil.copytree(run, whole)

    def assert_rejected(message: str, **words: str | None) -> None:
        with pytest.raises(ValueError, match=message):
            plan_adapter(whole / "adapter", **{"repo_id": ADAPTER, "base_repo_id": BASE, **words})  # type: ignore[arg-type]

    assert_rejected("without its base model. Add --base-repo-id", base_repo_id=None)
    assert_rejected("adapter and base model cannot both be", base_repo_id=ADAPTER)
    assert_rejected("'owner/name'", base_repo_id="base")
    (whole / "recipe.json").rename(whole / "other.json")
    assert_rejected("recipe.json is missing")
    (whole / "other.json").rename(whole / "recipe.json")
    config = whole / "adapter" / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "base_model_name_or_path": "/opt/someone/base"}))
    assert_rejected("'/opt/someone/base' names this machine")
    config.write_text(json.dumps(content))
    shutil.rmtree(whole / "base")
    assert_rejected("base is not a folder")
    (whole / "adapter" / "adapter_model.safetensors").unlink()
    assert_rejected("lacks adapter_model.safetensors")


def test_option_that_does_not_fit_the_folder_gives_one_error_line(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from hub_cards.__main__ import main

    words = ["push", str(run / "adapter"), "--repo-id", ADAPTER, "--base-repo-id", BASE]
    assert main(words) == 0
    assert "dry run" in capsys.readouterr().out
    assert main([*words, "--dataset", str(tmp_path), "--dataset-repo-id", "org/data"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["push", str(run / "hub"), "--repo-id", ADAPTER, "--base-repo-id", BASE]) == 2
    assert "holds no adapter" in capsys.readouterr().err
