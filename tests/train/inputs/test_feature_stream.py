"""Streamed inputs equal the cache, are decoded one step ahead, and leave no process behind."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.synthetic_governed import rows, write_categories, write_governed, write_samples
from train.encoders.backbones import build_model
from train.inputs.cache import FeatureCache, cache_features
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.feature_stream import Decoder, LookAhead, StreamedInputs, stream_features, with_look_ahead
from train.inputs.sampler import StepSampler
from train.inputs.samples import GovernedSamples, read_samples
from train.inputs.views import UnreadableImage
from train.recipes.emoji import tiny
from train.recipes.recipe import Recipe

RECIPE = tiny().with_changes(
    {"text.encoder": None, "image.query_views": 1, "image.document_views": 2, "runtime.feature_storage": "stream"}
)
CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
NO_IMAGE = 1  # document of made_governed.py


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> GovernedSamples:
    return read_samples(write_governed(tmp_path_factory.mktemp("stream") / "governed"))


def streamed(samples: GovernedSamples, folder: Path, *, workers: int, recipe: Recipe = RECIPE) -> FeatureCache:
    model, processor = build_model(recipe, seed=0)
    extraction = FeatureExtraction(model, processor, samples.table, recipe=recipe, seed=4)
    return stream_features(extraction, folder, workers=workers)


@pytest.fixture(scope="module")
def cached(samples: GovernedSamples, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    model, processor = build_model(RECIPE, seed=0)
    folder = tmp_path_factory.mktemp("features")
    extraction = FeatureExtraction(model, processor, samples.table, recipe=RECIPE, seed=4)
    return cache_features(extraction, folder, workers=0)


@pytest.mark.parametrize("workers", [0, 2] if CAN_FORK else [0])
def test_streamed_rows_equal_cached_rows(
    samples: GovernedSamples, cached: FeatureCache, tmp_path: Path, workers: int
) -> None:
    found = streamed(samples, tmp_path, workers=workers)
    rng = np.random.default_rng(0)
    for name, views in (("query_inputs", 2), ("document_inputs", 3)):
        stream, array = getattr(found, name), getattr(cached, name)
        assert len(stream) == len(array)
        for count in (1, 5, 16, 21):
            wanted = rng.integers(0, len(array), count), rng.integers(0, views, count)
            assert stream[wanted].dtype == array.dtype
            assert (stream[wanted] == array[wanted]).all(), (name, count)
        none = np.zeros(0, np.int64)
        assert stream[none, none].shape == (0, *array.shape[2:])
    missing = np.array([NO_IMAGE, NO_IMAGE])
    assert not found.document_inputs[missing, np.array([0, 2])].any()
    assert (found.document_has_image == cached.document_has_image).all()
    assert not list(tmp_path.iterdir())


def sampler() -> StepSampler:
    side = np.arange(12), np.arange(12) % 4, np.ones(12)
    return StepSampler(side, side, query_views=1, document_views=2, balance=1.0)


class Recorder:
    """Stands for a decoder: what was announced."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, list[int]]]] = []

    def announce(self, wanted: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
        self.calls.append([(side, part.tolist()) for side, part, _ in wanted])


def test_rows_of_the_next_step_are_announced_by_micro_step() -> None:
    recipe = RECIPE.with_changes({"image.steps": 3, "image.gradient_accumulation": 2})
    decoder = Recorder()
    ahead = LookAhead(sampler(), decoder, recipe)  # type: ignore[arg-type]
    plain = [sampler().compose(step, seed=2, queries=6, documents=4) for step in range(3)]
    for step, expected in enumerate(plain):
        found = ahead.compose(step, seed=2, queries=6, documents=4)
        for side in ("query", "document"):
            for name in ("rows", "views", "labels"):
                assert (getattr(getattr(found, side), name) == getattr(getattr(expected, side), name)).all()
    first = [("query", plain[0].query.rows[:3].tolist()), ("document", plain[0].document.rows[:2].tolist())]
    assert decoder.calls[0][:2] == first
    assert [len(call) for call in decoder.calls] == [8, 8, 4]  # nothing follows the last step
    assert decoder.calls[0][4:] == decoder.calls[1][:4]


def test_a_cache_needs_no_look_ahead(cached: FeatureCache) -> None:
    plain = sampler()
    assert with_look_ahead(plain, cached, RECIPE) is plain


class Slow:
    """Views of a side that say who decoded them."""

    def of(self, row: int, wanted: list[int]) -> Any:
        return UnreadableImage(f"row {row} by {os.getpid()}") if row < 0 else Numbers(row, wanted[0])


class Numbers:
    """One image whose pixels say its row, its view and its process."""

    def __init__(self, row: int, view: int) -> None:
        self.values = np.array([[[[row, view, os.getpid()]]]], np.float64)

    def numpy(self) -> np.ndarray:
        return self.values


@pytest.mark.skipif(not CAN_FORK, reason="needs fork")
def test_announced_rows_come_from_workers_in_order_and_others_are_cancelled() -> None:
    decoder = Decoder({"query": Slow()}, workers=1)  # type: ignore[dict-item]
    rows, views = np.arange(40), np.arange(40) % 3
    decoder.announce([("query", rows, views), ("query", rows + 1, views)])
    found = decoder.take("query", rows, views).reshape(40, 3)
    assert (found[:, 0].numpy() == rows).all()
    assert (found[:, 1].numpy() == views).all()
    assert os.getpid() not in found[:, 2].tolist()
    assert len(decoder._pending) == 1
    decoder.announce([("query", rows[:4], views[:4])])
    assert len(decoder._pending) == 1
    with pytest.raises(ValueError, match="row -2 by"):
        decoder.take("query", np.array([3, -2]), np.array([0, 0]))


@pytest.mark.skipif(not CAN_FORK, reason="needs fork")
def test_workers_end_with_a_killed_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.inputs.feature_stream.SECONDS_BETWEEN_CHECKS", 0.05)
    here, there = multiprocessing.Pipe()

    def parent() -> None:
        decoder = Decoder({"query": Slow()}, workers=1)  # type: ignore[dict-item]
        one = np.array([1])
        there.send(int(decoder.take("query", one, one).flatten()[2]))
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    worker = here.recv()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL
    end = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
        status = Path(f"/proc/{worker}/status").read_text() if Path(f"/proc/{worker}/status").exists() else ""
        if "State:\tZ" in status:
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_error_names_the_undecodable_image(tmp_path: Path) -> None:
    made: list[Any] = rows()
    made[5]["image"] = {"bytes": b"no image", "path": None}
    write_samples(tmp_path, made)
    write_categories(tmp_path, [f"key{number}" for number in range(12)])
    found = streamed(read_samples(tmp_path), tmp_path / "features", workers=0)
    assert isinstance(found.query_inputs, StreamedInputs)
    with pytest.raises(ValueError, match="the image of sample 'q0x5' cannot be read"):
        found.query_inputs[np.array([5]), np.array([0])]
