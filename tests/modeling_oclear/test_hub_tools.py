"""A published folder in the tools of its users: pipelines, sentence-transformers, datasets."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline
from transformers.utils.generic import TensorType

from modeling_oclear import OclearForCategoryClassification, OclearModel, publish
from tests.support.small_oclear import drawing, small_config, small_processor

RED, BLUE = drawing(), drawing("blue", (5, 5, 30, 45))
DOCUMENTS: list[Any] = [
    {"image": RED, "text": "a red ball on grass"},
    {"image": BLUE},
    {"text": "a blue cup"},
    "red ball",
    RED,
    {"image": BLUE, "text": None},
]


def random_weights(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("published")
    return publish(random_weights(OclearModel(small_config())), small_processor(home), home / "hub")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("classifier")
    model = random_weights(OclearForCategoryClassification(small_config(num_classes=7)))
    return publish(model, small_processor(home), home / "hub")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("pool", [None, True])
def test_feature_extraction_gives_the_embedding_of_a_query(
    folder: Path, model: Any, processor: Any, pool: bool | None
) -> None:
    extract = pipeline("image-feature-extraction", model=str(folder), trust_remote_code=True)
    found = extract([RED, BLUE], pool=pool)
    with torch.no_grad():
        wanted = model.get_query_embeds(processor(images=[RED, BLUE])["pixel_values"])
        documents = model.get_document_embeds(processor(images=[RED, BLUE])["pixel_values"]).embeds
    np.testing.assert_allclose(np.array(found)[:, 0], wanted.numpy(), atol=1e-6)
    assert not torch.allclose(documents, wanted, atol=1e-2)


def test_the_query_folder_alone_is_a_feature_extractor_too(folder: Path, model: Any, processor: Any) -> None:
    query = AutoModel.from_pretrained(folder, subfolder="query", trust_remote_code=True).eval()
    with torch.no_grad():
        found = query(**AutoProcessor.from_pretrained(folder, subfolder="query", trust_remote_code=True)(images=RED))
        wanted = model.get_query_embeds(**processor(images=RED))
    torch.testing.assert_close(found.pooler_output, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0], wanted, atol=1e-6, rtol=0)


def test_image_classification_names_the_prototypes(classifier: Path) -> None:
    classify: Any = pipeline("image-classification", model=str(classifier), trust_remote_code=True)
    assert classify.model.config.num_labels == 7
    found = classify(RED, top_k=7)
    assert sorted(row["label"] for row in found) == [f"LABEL_{number}" for number in range(7)]
    assert sum(row["score"] for row in found) == pytest.approx(1)
    with torch.no_grad():
        logits = classify.model(**classify.image_processor(RED)).logits[0]
    assert found[0]["label"] == f"LABEL_{int(logits.argmax())}"


def test_a_query_without_picture_is_refused(folder: Path, model: Any, processor: Any, classifier: Path) -> None:
    inputs = processor(images=[RED, None])
    query = AutoModel.from_pretrained(folder, subfolder="query", trust_remote_code=True)
    classify = AutoModelForImageClassification.from_pretrained(classifier, trust_remote_code=True)
    for call in (query, model.get_query_embeds, classify):
        with pytest.raises(ValueError, match=r"query 1 \(and 0 more of 2\) has no image: leave it out"):
            call(**inputs)


def test_models_accept_all_that_the_processor_gives(model: Any, processor: Any) -> None:
    inputs = processor(images=[RED, None], text=["red ball", "cup"], return_token_type_ids=True)
    plain = processor(images=[RED, None], text=["red ball", "cup"])
    assert set(inputs) - set(plain) == {"token_type_ids"}
    with torch.no_grad():
        found, wanted = model(**inputs).document_embeds, model(**plain).document_embeds
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True, "truncation": True, "return_tensors": "pt"},
        {"text_kwargs": {"padding": "longest"}, "images_kwargs": {"do_resize": True}},
        {"common_kwargs": {"return_tensors": TensorType.PYTORCH}},
        {"images_kwargs": {"size": 37}, "text_kwargs": {"max_length": 11}},
    ],
)
def test_the_usual_arguments_of_processors_are_taken(processor: Any, options: dict[str, Any]) -> None:
    wanted = processor(images=[RED, BLUE], text=["a red ball on grass", None])
    found = processor(images=[RED, BLUE], text=["a red ball on grass", None], **options)
    assert set(found) == set(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=0, rtol=0)


def test_arguments_of_a_call_have_an_effect(processor: Any) -> None:
    texts = ["a red ball on grass", "cup"]
    assert processor(text=texts, max_length=4)["input_ids"].shape == (2, 4)
    assert processor(text=texts, padding="max_length")["input_ids"].shape == (2, 11)
    assert processor(images=RED, images_kwargs={"size": 20})["pixel_values"].shape == (1, 3, 20, 20)
    lists = processor(images=[RED], text=texts[:1], padding=False, return_tensors=None)
    assert isinstance(lists["input_ids"], list)
    assert isinstance(processor(images=[RED], text=texts[:1], return_tensors="np")["has_text"], np.ndarray)
    assert processor(text=[texts[0], None])["attention_mask"].any(dim=1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pading": True}, "pading is not an argument of this call"),
        ({"text_kwargs": {"colour": 1}}, "colour is not an argument"),
        ({"images_kwargs": {"colour": 1}}, "colour is not an argument of this call; its options are size"),
        ({"images_kwargs": {"do_resize": False}}, "do_resize is not an argument"),
        ({"videos": [1]}, "videos is not an argument"),
        ({"return_tensors": "tf"}, "choose 'pt', 'np' or None"),
        ({"padding": False}, "different numbers of tokens"),
    ],
)
def test_other_arguments_are_refused(processor: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(images=[RED, BLUE], text=["a red ball on grass", "cup"], **options)


def test_datasets_map_keeps_the_keys(processor: Any) -> None:
    rows = datasets.Dataset.from_dict({"image": [RED, BLUE], "text": ["red", "a blue cup"]})
    rows = rows.cast_column("image", datasets.Image())
    mapped = rows.map(lambda row: processor(images=row["image"], text=row["text"]), remove_columns=["image"])
    assert set(mapped.column_names) == {"text", "pixel_values", "has_image", "input_ids", "attention_mask", "has_text"}
    one = processor(images=RED, text="red")
    np.testing.assert_array_equal(np.array(mapped[0]["pixel_values"]), one["pixel_values"].numpy())
    np.testing.assert_array_equal(np.array(mapped[0]["input_ids"]), one["input_ids"].numpy())


@pytest.fixture(scope="module")
def sentences(folder: Path) -> Any:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_sentence_transformers_gives_the_numbers_of_the_model(
    sentences: Any, model: Any, processor: Any, batch_size: int
) -> None:
    queries = sentences.encode_query([RED, BLUE], batch_size=batch_size)
    documents = sentences.encode_document(DOCUMENTS, batch_size=batch_size)
    images, texts = (
        [RED, BLUE, None, None, RED, BLUE],
        [DOCUMENTS[0]["text"], None, "a blue cup", "red ball", None, None],
    )
    with torch.no_grad():
        wanted = model.get_document_embeds(**processor(images=images, text=texts)).embeds
        np.testing.assert_allclose(queries, model.get_query_embeds(**processor(images=[RED, BLUE])), atol=1e-6)
    np.testing.assert_allclose(documents, wanted, atol=1e-6)
    assert sentences.get_embedding_dimension() == 27
    scores = sentences.similarity(queries, documents)
    np.testing.assert_allclose(scores, queries @ documents.T, atol=1e-6)


def test_sentence_transformers_reads_a_picture_from_disk(sentences: Any, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    from_disk = sentences.encode_query([str(tmp_path / "red.png")])
    np.testing.assert_allclose(from_disk, sentences.encode_query([RED]), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "items", "message"),
    [
        ("query", ["red ball"], "query 0 is 'red ball', which is no file here"),
        ("query", [{"image": RED, "text": "red"}], "query 0 is no picture alone"),
        ("query", ["https://example.org/a.png"], "nothing is downloaded"),
        ("document", [RED, {"text": ""}], "document 1 has neither a picture nor a text"),
        ("document", [{"image": RED, "title": "red"}], "document 0 has the field 'title'"),
        ("document", [{"image": 3}], "document 0 is a int"),
        ("document", [{"role": "user", "content": "red"}], "document 0 is a list"),
    ],
)
def test_sentence_transformers_refuses_what_is_no_query_or_document(
    sentences: Any, task: str, items: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sentences.encode(items, task=task)


def test_a_broken_picture_is_named_by_its_row(sentences: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"query 0: image cannot be decoded"):
        sentences.encode_query([str(tmp_path / "cut.png")])


def test_a_saved_sentence_transformer_loads_again(sentences: Any, tmp_path: Path) -> None:
    sentences.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode_document(DOCUMENTS), sentences.encode_document(DOCUMENTS), atol=1e-6)


def test_an_image_of_mode_p_is_a_query(sentences: Any) -> None:
    assert sentences.encode_query([Image.new("P", (9, 9))]).shape == (1, 27)
