"""The text's gate: Bayes' rule of two Gaussians, opened for texts that agree, shut for those of something else."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from train.encoders.backbones import build_model
from train.recipes.emoji import tiny
from train.text_stage.gate import COST, STEEPER, agreements, fit_gate, sharper, two_gaussians

WIDTH, CELL_WIDTH = 20, 10  # of the tiny recipe


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_pairs(count: int = 60, noise: float = 0.6) -> tuple[Tensor, Tensor, np.ndarray]:
    """Images, texts that say about what is seen, in any length, and categories of two documents each."""
    images = functional.normalize(normal(count, WIDTH), dim=1)
    said = images + noise * functional.normalize(normal(count, WIDTH, seed=1), dim=1)
    return images, said * (1 + normal(count, 1, seed=2).abs()), np.arange(count) // 2


def test_the_gate_is_bayes_rule_of_two_gaussians_of_one_variance() -> None:
    right, other = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([-0.1, 0.1, 0.0, 0.05])
    slope, centre = two_gaussians(right, other)
    means = [sum(part.tolist()) / len(part) for part in (right, other)]
    squares = sum((value - mean) ** 2 for part, mean in zip((right, other), means, strict=True) for value in part)
    variance = float(squares) / 7
    for cosine in (-0.4, 0.0, 0.11, 0.5):
        density = [math.exp(-((cosine - mean) ** 2) / (2 * variance)) for mean in means]
        found = 1 / (1 + math.exp(-slope * (cosine - centre)))
        assert math.isclose(found, density[0] / sum(density), rel_tol=1e-5)


def test_the_gate_is_half_open_where_right_is_cost_times_as_likely_and_steeper_around_it() -> None:
    slope, centre = 8.0, 0.06
    steep, half_open = sharper(slope, centre)
    assert math.isclose(math.exp(slope * (half_open - centre)), COST)  # odds of right against wrong
    for cosine in (-0.2, 0.06, 0.3):
        logit = slope * (cosine - centre)
        assert math.isclose(steep * (cosine - half_open), STEEPER * (logit - math.log(COST)), abs_tol=1e-12)
    assert sharper(0.0, 0.0) == (0.0, 0.0)


def test_where_right_texts_agree_no_better_than_others_agreement_says_nothing() -> None:
    low, high = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    assert two_gaussians(low, high) == (0.0, 0.0)
    assert two_gaussians(low, low) == (0.0, 0.0)
    assert two_gaussians(torch.full((3,), 0.5), torch.full((3,), 0.2)) == (0.0, 0.0)  # nothing varies
    assert two_gaussians(high, low[:1]) == (0.0, 0.0)  # nobody to compare with
    assert two_gaussians(high, low)[0] > 0


def test_agreement_does_not_depend_on_how_long_a_concept_is() -> None:
    images, said, _ = made_pairs()
    torch.testing.assert_close(agreements(images, said), agreements(images, 7 * said))


def test_the_text_of_another_document_is_shut_out_and_the_own_one_let_in() -> None:
    model, _ = build_model(tiny(), seed=0)
    images, said, labels = made_pairs()
    report = fit_gate(model.fusion, images, said, labels, seed=0)
    assert report["slope"] > 0
    everywhere, cells = torch.ones(60, dtype=torch.bool), torch.zeros(60, 4, CELL_WIDTH)
    openings = []
    for texts in (said, said.roll(30, 0)):
        concepts = texts[:, None].expand(-1, model.fusion.config.num_concepts, -1)
        with torch.no_grad():
            output = model.fusion.fuse(images, cells, concepts, has_image_B=everywhere, has_text_B=everywhere)
        openings.append(output.gate[..., 1])
        naive = torch.sigmoid(report["slope"] * (agreements(images, texts) - report["centre"]))
        torch.testing.assert_close(output.gate[:, 0, 1], naive, rtol=1e-3, atol=1e-3)  # the report is rounded
    assert float(openings[0].mean()) > 0.9
    assert float(openings[1].mean()) < 0.1


def test_what_is_added_is_the_concept_times_its_gate() -> None:
    model, _ = build_model(tiny(), seed=0)
    model.config.text_strength = model.fusion.config.text_strength = 0.5
    images, said, labels = made_pairs()
    fit_gate(model.fusion, images, said, labels, seed=0)
    model.fusion.evidence_projection.weight.data.zero_()
    everywhere, cells = torch.ones(60, dtype=torch.bool), torch.zeros(60, 4, CELL_WIDTH)
    concepts = said[:, None].expand(-1, model.fusion.config.num_concepts, -1)
    with torch.no_grad():
        output = model.fusion.fuse(images, cells, concepts, has_image_B=everywhere, has_text_B=everywhere)
    torch.testing.assert_close(output.text_shift, 0.5 * output.gate[:, 0, 1:] * said)


def test_a_gate_that_learns_nothing_is_left_as_it_was() -> None:
    model, _ = build_model(tiny(), seed=0)
    before = {name: value.clone() for name, value in model.fusion.state_dict().items()}
    images, said, labels = made_pairs()
    assert fit_gate(model.fusion, images, -said, labels, seed=0) == {"slope": 0.0, "centre": 0.0}
    one = np.zeros(60, dtype=int)  # no text of another category to compare with
    assert fit_gate(model.fusion, images, said, one, seed=0) == {"slope": 0.0, "centre": 0.0}
    assert all(torch.equal(value, before[name]) for name, value in model.fusion.state_dict().items())
