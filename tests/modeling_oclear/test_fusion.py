"""The fusion and its exact fallbacks, in batches with missing images and texts."""

import pytest
import torch

from modeling_oclear import OclearDocumentOutput, OclearModel
from tests.support.small_oclear import small_batch, small_config


@pytest.fixture(scope="module")
def model() -> OclearModel:
    """A model whose fusion has been moved away from its start, so that a fallback is not an accident."""
    torch.manual_seed(0)
    model = OclearModel(small_config()).eval()
    assert model.fusion is not None
    with torch.no_grad():
        for parameter in [*model.fusion.parameters(), *model.image_head.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def embed(model: OclearModel, **changes: torch.Tensor | None) -> OclearDocumentOutput:
    with torch.no_grad():
        return model.get_document_embeds(**{**small_batch(), **changes})


def test_embeddings_are_finite_unit_rows(model: OclearModel) -> None:
    output = embed(model)
    torch.testing.assert_close(output["embeds"].norm(dim=1), torch.ones(5))
    assert all(torch.isfinite(value).all() for value in output.values() if isinstance(value, torch.Tensor))
    assert output.grid == (5, 5)
    assert output["attention"].shape == (5, 3, 25)
    assert output["gate"].shape == (5, 3, 2)


def test_text_changes_the_embedding_of_a_document_with_image_and_text(model: OclearModel) -> None:
    output = embed(model)
    for row in (0, 4):
        assert (output["embeds"][row] - output["image_embeds"][row]).abs().max() > 1e-2
        together = output["image_embeds"][row] + output["text_shift"][row]
        torch.testing.assert_close(output["embeds"][row], together / together.norm())


def test_without_text_the_result_is_the_image_embedding_bit_for_bit(model: OclearModel) -> None:
    output = embed(model)
    for row in (2, 3):  # 2 has no text, 3 a text without tokens
        assert torch.equal(output["embeds"][row], output["image_embeds"][row])
        assert torch.all(output["text_shift"][row] == 0)
    alone = embed(model, input_ids=None, attention_mask=None, has_text=None, has_image=None)
    assert torch.equal(alone["embeds"], alone["image_embeds"])
    assert torch.equal(alone["image_embeds"], embed(model, has_image=None)["image_embeds"])


def test_at_text_weight_zero_the_result_is_the_image_embedding_bit_for_bit(model: OclearModel) -> None:
    before = embed(model)
    model.config.text_strength = 0.0
    after = embed(model)
    model.config.text_strength = 1.0
    has_image = small_batch()["has_image"]
    assert torch.equal(after["embeds"][has_image], after["image_embeds"][has_image])
    assert torch.all(after["text_shift"][has_image] == 0)
    assert torch.equal(after["embeds"][1], before["embeds"][1])


def test_without_image_pixels_and_text_weight_have_no_effect(model: OclearModel) -> None:
    output = embed(model)
    other = small_batch()["pixel_values"]
    other[1] = 1e3
    assert torch.equal(embed(model, pixel_values=other)["embeds"][1], output["embeds"][1])
    model.config.text_strength = 0.3
    assert torch.equal(embed(model)["embeds"][1], output["embeds"][1])
    model.config.text_strength = 1.0
    kept = torch.tensor([0, 1, 4])
    batch = small_batch()
    with torch.no_grad():
        text_only = model.get_document_embeds(
            input_ids=batch["input_ids"][kept], attention_mask=batch["attention_mask"][kept]
        )
    torch.testing.assert_close(text_only["embeds"][1], output["embeds"][1])
    assert text_only["attention"].shape == (3, 3, 0)
    torch.testing.assert_close(text_only["text_shift"], text_only["embeds"])


def test_gate_and_attention_are_zero_without_image_or_text_else_attention_sums_to_one(
    model: OclearModel,
) -> None:
    output = embed(model)
    both = torch.tensor([True, False, False, False, True])
    assert torch.all(output["gate"][~both] == 0)
    assert torch.all(output["attention"][~both] == 0)
    assert torch.all(output["gate"][both] > 0)
    torch.testing.assert_close(output["attention"][both].sum(-1), torch.ones(2, 3))


def test_gate_depends_on_the_agreement_of_image_and_concept(model: OclearModel) -> None:
    fusion = model.fusion
    assert fusion is not None
    image, cells, concept = torch.randn(2, 27), torch.randn(2, 25, 19), torch.randn(2, 3, 27)
    image = image / image.norm(dim=1, keepdim=True)
    both = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        found = fusion.fuse(image, cells, concept, has_image_B=both, has_text_B=both)["gate"]
        evidence, _ = fusion.read_evidence(concept, cells)
        for row, place in ((0, 0), (0, 2), (1, 1)):
            said = fusion.concept_projection(concept[row, place])
            read = torch.cat([image[row], evidence[row, place], concept[row, place]])
            agree = float(image[row] @ said / said.norm())
            expected = torch.sigmoid(fusion.gate(read) + fusion.agreement * agree)
            torch.testing.assert_close(found[row, place], expected)


def test_padding_has_no_effect(model: OclearModel) -> None:
    other = small_batch()["input_ids"]
    other[4, 4:] = 7
    torch.testing.assert_close(embed(model, input_ids=other)["embeds"][4], embed(model)["embeds"][4])


def test_a_row_does_not_depend_on_the_rest_of_its_batch(model: OclearModel) -> None:
    whole = embed(model)["embeds"]
    for row in range(5):
        alone = {name: value[row : row + 1] for name, value in small_batch().items()}
        torch.testing.assert_close(embed(model, **alone)["embeds"][0], whole[row], rtol=0, atol=1e-5)


def test_document_without_image_and_text_is_rejected_with_its_row(model: OclearModel) -> None:
    with pytest.raises(ValueError, match=r"row 1 \(and 0 more of 5\) has neither image nor text"):
        embed(model, has_text=torch.tensor([True, False, False, True, True]))
    with pytest.raises(ValueError, match="row 3"):  # a text without tokens is no text
        embed(model, has_image=torch.tensor([True, True, True, False, True]))
    with pytest.raises(ValueError, match="neither was given"):
        model.get_document_embeds()


def test_inputs_with_different_numbers_of_rows_are_rejected(model: OclearModel) -> None:
    batch = small_batch()
    with pytest.raises(ValueError, match="'pixel_values': 5, 'input_ids': 4"):
        model.get_document_embeds(batch["pixel_values"], batch["input_ids"][:4])
    with pytest.raises(ValueError, match="has_text is given without input_ids"):
        model.get_document_embeds(batch["pixel_values"], has_text=batch["has_text"])
    with pytest.raises(ValueError, match="has_image is given without pixel_values"):
        model.get_document_embeds(input_ids=batch["input_ids"], has_image=batch["has_image"])


def test_row_without_image_and_text_gives_zeros_and_finite_gradients(model: OclearModel) -> None:
    nobody = torch.zeros(2, dtype=torch.bool)
    tokens, cells = torch.randn(2, 6, 21, requires_grad=True), torch.randn(2, 25, 19, requires_grad=True)
    output = model.embed_document(
        torch.randn(2, 27), cells, tokens, torch.zeros(2, 6), has_image=nobody, has_text=nobody
    )
    assert torch.all(output["embeds"] == 0)
    output["embeds"].sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.fusion.parameters() if p.grad is not None)  # type: ignore[union-attr]
    model.zero_grad()


def test_cached_half_precision_features_are_accepted(model: OclearModel) -> None:
    batch = small_batch()
    with torch.no_grad():
        cells, pooled, grid = model.encode_image(batch["pixel_values"])
        tokens, mask = model.encode_text(batch["input_ids"], batch["attention_mask"])
        cached = model.embed_document(
            model.embed_pooled(pooled.half(), side="document"), cells.half(), tokens.half(), mask,
            has_image=batch["has_image"], has_text=batch["has_text"],
        )  # fmt: skip
    torch.testing.assert_close(cached["embeds"], embed(model)["embeds"], rtol=0, atol=2e-2)
    assert grid == embed(model).grid == (5, 5)


def test_initial_model_is_nearly_image_only_and_has_gradients_everywhere() -> None:
    torch.manual_seed(1)
    model = OclearModel(small_config()).eval()
    output = model.get_document_embeds(**small_batch())
    difference = (output["embeds"][0] - output["image_embeds"][0]).abs().max()
    assert 0 < difference < 1e-2
    closed = torch.full((3, 2), torch.sigmoid(torch.tensor(-2.0)).item())
    torch.testing.assert_close(output["gate"][0], closed, rtol=0.1, atol=0)
    assert model.fusion is not None
    both = ("concept_query", "text_projection.weight", "evidence_value.weight", "gate.bias", "agreement")
    for row, names in ((0, both), (1, ("memory_value", "concept_query"))):  # row 1 has no image
        model.zero_grad()
        output["embeds"][row, 0].backward(retain_graph=True)
        for name in names:
            gradient = model.fusion.get_parameter(name).grad
            assert gradient is not None, name
            assert gradient.abs().max() > 0, name


def test_initial_concept_is_the_projected_centred_unit_sentence_vector() -> None:
    torch.manual_seed(2)
    model = OclearModel(small_config()).eval()
    assert model.fusion is not None
    model.fusion.text_mean.copy_(torch.randn(21) / 10)
    tokens, mask = torch.randn(2, 6, 21), torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    with torch.no_grad():
        concept = model.fusion.read_concepts(model.fusion.project_tokens(tokens, mask), mask)
        for row, length in ((0, 6), (1, 4)):
            mean = tokens[row, :length].mean(dim=0)
            expected = model.fusion.text_projection(mean / mean.norm() - model.fusion.text_mean)
            torch.testing.assert_close(concept[row], expected.expand(3, -1))


def test_memory_is_a_kernel_sum_over_its_slots(model: OclearModel) -> None:
    fusion = model.fusion
    assert fusion is not None
    sentences = torch.nn.functional.normalize(torch.randn(2, 21), dim=1)
    with torch.no_grad():
        found = fusion.recall(sentences)
        for row in range(2):
            expected = torch.zeros(27)
            for text, value in zip(fusion.memory, fusion.memory_value, strict=True):
                expected += torch.exp(model.config.memory_sharpness * (sentences[row] @ text - 1)) * value
            torch.testing.assert_close(found[row], expected)


def test_memory_is_used_only_for_documents_without_image(model: OclearModel) -> None:
    fusion = model.fusion
    assert fusion is not None
    before = embed(model)["embeds"]
    kept = fusion.memory_value.detach().clone()
    with torch.no_grad():
        fusion.memory_value.zero_()
        after = embed(model)["embeds"]
        batch = small_batch()
        tokens, mask = model.encode_text(batch["input_ids"], batch["attention_mask"])
        said = fusion.concept_projection(fusion.read_concepts(fusion.project_tokens(tokens, mask), mask))[1].mean(0)
        fusion.memory_value.copy_(kept)
    has_image = small_batch()["has_image"]
    assert torch.equal(after[has_image], before[has_image])
    assert not torch.allclose(after[1], before[1])
    torch.testing.assert_close(after[1], said / said.norm())


def test_concepts_with_different_offsets_have_different_attention() -> None:
    torch.manual_seed(3)
    attention = OclearModel(small_config()).eval().get_document_embeds(**small_batch())["attention"]
    assert (attention[0, 0] - attention[0, 1]).abs().max() > 1e-3


def test_model_without_text_encoder_embeds_images_and_rejects_text() -> None:
    model = OclearModel(small_config(text=None)).eval()
    batch = small_batch()
    output = model.get_document_embeds(batch["pixel_values"])
    assert torch.equal(output["embeds"], output["image_embeds"])
    assert output["attention"].shape == (5, 3, 25)
    assert torch.all(output["text_shift"] == 0)
    with pytest.raises(ValueError, match="no text encoder"):
        model.get_document_embeds(batch["pixel_values"], batch["input_ids"])


def test_standardisation_is_per_side_and_not_trained() -> None:
    model = OclearModel(small_config()).train()
    pooled = torch.randn(4, 19)
    model.image_head.query_mean.copy_(pooled.mean(0))
    model.image_head.query_std.fill_(2.0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    expected = model.image_head.projection((pooled - pooled.mean(0)) / 2)
    torch.testing.assert_close(model.embed_pooled(pooled, side="query"), expected / expected.norm(dim=1, keepdim=True))
    assert not torch.allclose(model.embed_pooled(pooled, side="query"), model.embed_pooled(pooled, side="document"))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    with pytest.raises(ValueError, match="side is 'both'; this model has query and document"):
        model.embed_pooled(pooled, side="both")


def test_float64_stays_float64(model: OclearModel) -> None:
    wide = OclearModel(small_config()).eval().double()
    batch = small_batch()
    output = wide.get_document_embeds(**{**batch, "pixel_values": batch["pixel_values"].double()})
    assert output["embeds"].dtype == torch.float64
    torch.testing.assert_close(output["embeds"].norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-14)
