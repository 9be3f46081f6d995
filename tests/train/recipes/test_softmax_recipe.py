"""What a recipe says about the loss reaches the step, and two ranks compute the same as one process."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import spawn

from modeling_oclear.partial_softmax_oclear import CombinedMargin, SoftmaxForm, partial_softmax_loss, sample_classes
from tests.support.synthetic_run import small_recipe, train_small
from train.class_weights.shard import GatheredRows, class_range
from train.image_stage.step import _global_loss, softmax_form
from train.inputs.samples import leaf_ids
from train.recipes.recipe import ProxyAnchorLoss, Recipe
from train.recipes.registry import recipe_by_name

CLASSES, WIDTH, SUB_CENTRES = 11, 6, 2
LEAVES = ["tool", "", "food", "tool", "food", "tool", "", "food", "tool", "tool", "food"]
EVERYTHING: dict[str, Any] = {
    "head.loss.margin": "combined",
    "head.loss.margin_value": (1.1, 0.2, 0.1),
    "head.loss.label_smoothing": 0.1,
    "head.sub_centres": SUB_CENTRES,
    "head.loss.conflict_delta": 0.5,
    "head.loss.conflict_tau": 0.9,
}


def made_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings, labels, rows of every class."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(5, WIDTH, dtype=torch.float64, generator=generator)
    rows = torch.randn(CLASSES * SUB_CENTRES, WIDTH, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 10, 5, 5, 2])
    return torch.nn.functional.normalize(embeds, dim=1).requires_grad_(), labels, rows


def loss_of_range(recipe: Recipe, *, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its gradients of embeddings and of this range's rows."""
    embeds, labels, rows = made_inputs()
    first, end = class_range(CLASSES, part=part, parts=parts)
    sampled = sample_classes(CLASSES, positives=labels, rate=0.3, seed=0, step=1, class_range=(first, end))
    mine = rows.view(CLASSES, SUB_CENTRES, WIDTH)[sampled.class_ids, : recipe.head.sub_centres]
    mine = mine.flatten(0, 1).requires_grad_()
    gathered = GatheredRows(mine, sampled.class_ids, sampled.log_correction)
    loss = _global_loss(embeds, labels, gathered, recipe, leaf_N=leaf_ids(LEAVES))
    of_embeds, of_rows = torch.autograd.grad(loss, (embeds, mine))
    return loss.detach(), of_embeds, of_rows


ANCHOR: dict[str, Any] = {"head.loss": ProxyAnchorLoss(margin=0.1, alpha=16.0)}


def _on_rank(part: int, parts: int, port: int, folder: str, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(part), WORLD_SIZE=str(parts), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # every rank is a client of the parent's store
    dist.init_process_group("gloo")
    torch.save(loss_of_range(small_recipe(changes), part=part, parts=parts), Path(folder) / str(part))
    dist.destroy_process_group()


@pytest.mark.parametrize("changes", [EVERYTHING, ANCHOR], ids=["softmax", "proxy_anchor"])
def test_two_ranks_with_every_setting_compute_what_one_process_computes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(_on_rank, args=(2, store.port, str(tmp_path), changes), nprocs=2)
    loss, of_embeds, of_rows = loss_of_range(small_recipe(changes), part=0, parts=1)
    ranks = [torch.load(tmp_path / str(part), weights_only=True) for part in range(2)]
    for found, *_ in ranks:
        torch.testing.assert_close(found, loss, rtol=0, atol=1e-12)
    # Each rank has the gradient through its own classes; their sum is the whole, which the gather's backward forms.
    torch.testing.assert_close(ranks[0][1] + ranks[1][1], of_embeds, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([ranks[0][2], ranks[1][2]]), of_rows, rtol=0, atol=1e-12)


def test_the_recipe_is_the_form_of_the_loss() -> None:
    form = softmax_form(small_recipe(EVERYTHING))
    assert form == SoftmaxForm(
        margin=CombinedMargin(1.1, 0.2, 0.1), scale=16.0, label_smoothing=0.1, sub_centres=2, conflict_delta=0.5,
        conflict_tau=0.9,
    )  # fmt: skip
    embeds, labels, rows = made_inputs()
    sampled = sample_classes(CLASSES, positives=labels, rate=0.3, seed=0, step=1)
    expected = partial_softmax_loss(embeds, labels, rows, form=form, sampled=sampled, leaf_N=leaf_ids(LEAVES))
    torch.testing.assert_close(loss_of_range(small_recipe(EVERYTHING), part=0, parts=1)[0], expected.detach())


def test_leaves_are_numbered_and_the_unknown_one_is_below_zero() -> None:
    assert leaf_ids(["tool", "", "food", "tool"]).tolist() == [2, -1, 1, 2]


def first_loss(folder: Path, **changes: Any) -> float:
    train_small(small_recipe({"head.sample_rate": 0.2, **changes}), folder, max_steps=1)
    return float(json.loads((folder / "train.jsonl").read_text().splitlines()[0])["loss"])


@pytest.mark.parametrize(
    "change",
    [
        {"head.loss.margin": "combined", "head.loss.margin_value": (1.0, 0.3, 0.1)},
        {"head.loss.label_smoothing": 0.1},
        {"head.loss.conflict_tau": 0.0},
        {"head.loss.conflict_delta": 0.0},
        {"head.sample_log_q": False, "image.queries_per_step": 1, "image.documents_per_step": 1},
        {"head.loss": ProxyAnchorLoss(alpha=16.0)},
    ],
    ids=str,
)
def test_each_field_changes_a_step(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = {name: change[name] for name in change if name.endswith("_per_step")}
    assert abs(first_loss(tmp_path / "a", **change) - first_loss(tmp_path / "b", **rows)) > 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.loss.margin": "combined"}, r"margin_value is 0.2 with margin 'combined'"),
        ({"head.loss.margin_value": (1.0, 0.2, 0.1)}, r"margin_value is \(1.0, 0.2, 0.1\) with margin 'cosface'"),
        ({"head.loss.margin": "combined", "head.loss.margin_value": (1.0, 0.2)}, "with margin 'combined'"),
        ({"head.loss.margin_value": -0.1}, "margin_value is -0.1; it must be at least 0"),
        ({"head.loss.label_smoothing": 1.0}, "label_smoothing is 1.0; it must be at least 0 and at most 0.99"),
        ({"head.sub_centres": 0}, "sub_centres is 0"),
        ({"head.loss.conflict_delta": -0.5}, "conflict_delta is -0.5"),
        ({"head.loss.conflict_tau": 1.5}, "conflict_tau is 1.5"),
        ({**ANCHOR, "head.loss.label_smoothing": 0.1}, "no setting 'label_smoothing'; known: margin, alpha"),
        ({**ANCHOR, "head.sub_centres": 2}, "sub_centres is 2 with ProxyAnchor"),
        ({**ANCHOR, "image.gradient_accumulation": 2}, "gradient_accumulation is 2 with ProxyAnchor"),
    ],
)
def test_a_form_out_of_range_is_refused_by_the_recipe(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe_by_name("tiny").with_changes(change)


def test_a_combined_margin_reads_back_from_json(tmp_path: Path) -> None:
    recipe = small_recipe(EVERYTHING)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    assert recipe_by_name(str(path)) == recipe


def test_proxy_anchor_learns_and_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    recipe = small_recipe({**ANCHOR, "head.sample_rate": 0.6, "image.steps": 40})
    whole = train_small(recipe, tmp_path / "whole")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "train.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    train_small(recipe, tmp_path / "cut", max_steps=17)
    resumed = train_small(recipe, tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())
