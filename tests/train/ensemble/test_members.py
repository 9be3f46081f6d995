"""Several trainings become one model: the mean of their weights, and a student that answers as they do together."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from modeling_oclear import OclearModel
from tests.support.ranks import finished as finished_on_ranks
from tests.support.synthetic_governed import write_governed
from train.command import read_options
from train.context import RunContext, member_seed
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.pair import EncoderPair
from train.ensemble import ensemble as stage
from train.ensemble.distil import DistilRows, distil, distil_loss
from train.ensemble.ensemble import mean_weights, recipe_of_mean, recipe_of_result, train_ensemble
from train.image_stage.loop import train_image_stage
from train.pipeline import train
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name
from train.run import context_of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A run takes as many threads as cores are free, and last bits follow their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCLEAR_THREADS", "1")
        yield


def small(changes: Mapping[str, Any] | None = None) -> Recipe:
    return recipe_by_name("tiny").with_changes(
        {"image.steps": 4, "ensemble.num_members": 2, "ensemble.distil_steps": 5, **(changes or {})}
    )


def moved(recipe: Recipe, *, number: int) -> dict[str, Tensor]:
    """State of a pair whose image side has gone somewhere, with adapters as the recipe has them."""
    from train.encoders.lora import add_adapters

    pair = EncoderPair(build_model(recipe, seed=0)[0], frozen_stages=recipe.model.frozen_stages)
    if recipe.image.lora.rank:
        add_adapters(pair.get_submodule("vision"), recipe, seed=0)
    noise = torch.Generator().manual_seed(number)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=noise)
        if value.is_floating_point() and (".lora_" in name or name.startswith("image_head.projection"))
        else value
        for name, value in pair.state_dict().items()
    }


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_the_mean_of_adapters_is_the_mean_of_the_layers_that_they_make(alpha: float | None) -> None:
    recipe = small({"image.lora.rank": 2, "image.lora.alpha": alpha, "ensemble.num_members": 3})
    states = [moved(recipe, number=number) for number in range(3)]
    plain = [with_image_weights(recipe, state, seed=0)[0].state_dict() for state in states]
    soup = with_image_weights(recipe_of_mean(recipe), mean_weights(states, recipe), seed=0)[0].state_dict()
    differ = 0
    for name, value in soup.items():
        if value.is_floating_point() and name.startswith(("vision_model.", "image_head.")):
            torch.testing.assert_close(value, torch.stack([one[name] for one in plain]).mean(0), rtol=1e-5, atol=1e-6)
            differ += not torch.equal(plain[0][name], plain[1][name])
    assert differ > 1


def pair(recipe: Recipe, *, number: int | None = None) -> EncoderPair:
    """A plain pair, at its start or gone somewhere."""
    plain = recipe.with_changes({"image.lora.rank": 0})
    model, _ = with_image_weights(plain, {} if number is None else moved(plain, number=number), seed=0)
    return EncoderPair(model, frozen_stages=recipe.model.frozen_stages).eval()


def test_the_loss_is_the_distance_from_the_sum_of_the_teachers_and_zero_beside_oneself() -> None:
    recipe = small()
    teachers, student = [pair(recipe, number=number) for number in (1, 2)], pair(recipe)
    mixed = {"query": torch.randn(3, 12, 5, 5), "document": torch.randn(4, 12, 5, 5)}
    by_hand = []
    for side, inputs in mixed.items():
        one, two, own = (encoders.embed(inputs, side=side).detach() for encoders in (*teachers, student))
        by_hand.append(float((1 - functional.cosine_similarity(one + two, own)).mean()))
    assert float(distil_loss(student, teachers, mixed).detach()) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert float(distil_loss(student, [student], mixed).detach()) == pytest.approx(0, abs=1e-5)


def seen() -> DistilRows:
    rng = np.random.default_rng(0)
    inputs = {side: rng.normal(size=(9, 2, 12, 5, 5)).astype(np.float16) for side in ("query", "document")}
    return DistilRows(inputs, {"query": np.arange(9), "document": np.array([1, 4, 7])})


def test_a_student_comes_nearer_to_its_teachers_and_leaves_the_frozen_stages_alone() -> None:
    recipe = small(
        {"ensemble.distil_steps": 60, "ensemble.distil_learning_rate": 1e-2, "image.projection_learning_rate": 1e-2}
    )
    teachers, student = [pair(recipe, number=number) for number in (1, 2)], pair(recipe)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    inputs = {side: torch.from_numpy(part[:, 0]).float() for side, part in seen().inputs.items()}
    before = float(distil_loss(student, teachers, inputs).detach())
    distil(student, teachers, seen(), recipe=recipe, seed=0)
    assert float(distil_loss(student, teachers, inputs).detach()) < 0.5 * before
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, start[name])}
    assert any(name.startswith("vision.stages.6.") for name in changed)
    assert any(name.startswith("vision.head.") for name in changed)
    assert not any(name.startswith(("vision.stem.", *(f"vision.stages.{k}." for k in range(6)))) for name in changed)
    again = pair(recipe)
    distil(again, teachers, seen(), recipe=recipe, seed=0)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_distillation() -> None:
    broken = seen()
    broken.inputs["query"][:] = np.nan
    with pytest.raises(ValueError, match="the distillation's loss is nan at step 0; lower distil_learning_rate"):
        distil(pair(small()), [pair(small(), number=1)], broken, recipe=small(), seed=0)


def run(folder: Path, recipe: Recipe, governed: Path, *options: object) -> Path:
    """The user's own command in this process; features are shared."""
    words = folder.parent / f"{folder.name}.json"
    words.write_text(json.dumps(recipe.to_json()))
    line = [
        "--data",
        governed,
        "--out",
        folder,
        "--recipe",
        words,
        "--features",
        governed.parent / "features",
        *options,
    ]
    said = read_options(list(map(str, line)))
    assert said is not None
    train(context_of(said))
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


def published(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = OclearModel.from_pretrained(folder / "hub").state_dict()
    return state


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_governed(tmp_path_factory.mktemp("members") / "governed")


@pytest.fixture(scope="module")
def finished(governed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("finished") / "run", small({"image.lora.rank": 2}), governed)


def test_a_killed_run_goes_on_with_the_member_that_it_was_at_and_ends_equal(
    finished: Path,
    governed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual, calls = train_image_stage, []

    def killed(context: RunContext, *args: Any, **options: Any) -> Any:
        calls.append(context.member)
        if context.member == 1 and not context.resume:
            usual(dataclasses.replace(context, max_steps=2), *args, **options)
            raise KeyboardInterrupt
        return usual(context, *args, **options)

    monkeypatch.setattr(stage, "train_image_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", small({"image.lora.rank": 2}), governed)
    assert calls == [0, 1]
    assert not (tmp_path / "run" / "hub").exists()
    with caplog.at_level(logging.INFO, logger="train"):
        run(tmp_path / "run", small({"image.lora.rank": 2}), governed, "--resume")
    said = caplog.text
    assert "resumed from step-00000004: 4 steps done" in said
    assert "resumed from step-00000002: 2 steps done" in said
    theirs, ours = published(finished), published(tmp_path / "run")
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_a_run_that_takes_the_image_side_over_trains_neither_members_nor_student(
    finished: Path, governed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "distil", lambda *_, **__: pytest.fail("the student is there"))
    recipe = small({"image.lora.rank": 2, "text.encoder": None})
    taken = published(run(tmp_path / "run", recipe, governed, "--image-side", finished))
    theirs = published(finished)
    assert all(torch.equal(value, theirs[name]) for name, value in taken.items())
    assert not (tmp_path / "run" / "members" / "student.safetensors").exists()


def test_members_differ_and_the_student_is_published_without_adapters(finished: Path, governed: Path) -> None:
    assert (finished / "members" / "1" / "checkpoints").is_dir()
    assert not (finished / "adapter").exists()
    assert recipe_of_result(small({"image.lora.rank": 2})).image.lora.rank == 0
    first, second = (losses(finished / part) for part in (".", "members/1"))
    assert len(first) == len(second) == 4
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert member_seed(3, 1) != member_seed(4, 0)


def test_without_distillation_the_mean_of_the_members_is_published_with_its_adapters(
    governed: Path, tmp_path: Path
) -> None:
    out = run(tmp_path / "run", small({"image.lora.rank": 2, "ensemble.distil_steps": 0}), governed)
    assert (out / "adapter").is_dir()
    assert not (out / "members" / "student.safetensors").exists()
    assert '"r": 4' in (out / "adapter" / "adapter_config.json").read_text()


def test_one_member_is_a_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "train_image_stage", lambda context, *_, **__: context)
    context = RunContext(
        recipe=small({"ensemble.num_members": 1}),
        accelerator=Accelerator(cpu=True),
        data=Path("x"),
        folder=Path("x"),
        features=Path("x"),
        seed=5,
        reused_run=Path("y"),
    )
    found: Any = train_ensemble(context, None, None, None)  # type: ignore[arg-type]
    assert (found.folder, found.reused_run, found.member, found.draw_seed) == (Path("x"), Path("y"), 0, 5)
    assert recipe_of_result(small({"ensemble.num_members": 1, "image.lora.rank": 2})).image.lora.rank == 2


def test_what_several_members_cannot_honour_is_refused() -> None:
    with pytest.raises(ValueError, match="num_members is 2 with runtime.publish_prototypes true"):
        small({"runtime.publish_prototypes": True})
    with pytest.raises(ValueError, match="num_members is 2 with runtime.feature_storage stream"):
        small({"runtime.feature_storage": "stream"})
    with pytest.raises(ValueError, match="num_members is 0; it must be at least 1"):
        small({"ensemble.num_members": 0})


@pytest.mark.distributed
def test_two_ranks_train_the_members_and_the_student_of_one_process(tmp_path: Path) -> None:
    governed = write_governed(tmp_path / "governed")
    words = tmp_path / "recipe.json"
    words.write_text(json.dumps(small({"image.lora.rank": 2}).to_json()))
    shared: list[object] = ["--data", governed, "--recipe", words, "--features", tmp_path / "features"]
    for name, ranks in (("one", 1), ("two", 2)):
        finished_on_ranks(*shared, "--out", tmp_path / name, ranks=ranks, log=tmp_path / "log")
    one, two = published(tmp_path / "one"), published(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_cut_short_has_a_student_that_is_too(tmp_path: Path, governed: Path) -> None:
    cut = published(run(tmp_path / "cut", small({"ensemble.distil_steps": 9}), governed, "--max-steps", 2))
    asked = published(run(tmp_path / "asked", small({"ensemble.distil_steps": 2}), governed, "--max-steps", 2))
    assert all(torch.equal(value, asked[name]) for name, value in cut.items())
    longer = published(run(tmp_path / "longer", small({"ensemble.distil_steps": 1}), governed, "--max-steps", 2))
    assert not all(torch.equal(value, longer[name]) for name, value in cut.items())
