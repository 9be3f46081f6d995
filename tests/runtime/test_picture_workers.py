"""Workers give the pictures and reasons of the decoder, and outlive files that end a process."""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from modeling_oclear.image_decoding_oclear import ImageRefused, decode_image
from runtime import picture_workers
from runtime.picture_workers import PictureWorkers, decode_apart


def encoded(side: int, *, kind: str = "PNG", mode: str = "RGB") -> bytes:
    values = np.random.default_rng(side).integers(0, 255, (side, side, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values, mode).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(scope="module")
def workers() -> Iterator[PictureWorkers]:
    made = PictureWorkers(2)
    yield made
    made.close()


@pytest.mark.parametrize("data", [encoded(7), encoded(7, mode="RGBA"), encoded(300, kind="JPEG")])
def test_a_worker_gives_the_picture_of_the_decoder(workers: PictureWorkers, data: bytes) -> None:
    found, wanted = workers.decode(data, least_side=60), decode_image(data, least_side=60)
    assert (found.mode, found.size, found.tobytes()) == (wanted.mode, wanted.size, wanted.tobytes())


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (b"", {}),
        (b"<html>not found</html>", {}),
        (encoded(20)[:200], {}),
        (encoded(20), {"max_pixels": 399}),
        (encoded(20), {"max_bytes": 100}),
    ],
)
def test_a_worker_gives_the_reason_of_the_decoder(
    workers: PictureWorkers, data: bytes, options: dict[str, int]
) -> None:
    with pytest.raises(ImageRefused) as wanted:
        decode_image(data, **options)  # type: ignore[arg-type]
    with pytest.raises(ImageRefused) as found:
        workers.decode(data, **options)
    assert (found.value.reason, str(found.value)) == (wanted.value.reason, str(wanted.value))


def test_many_threads_get_their_own_pictures(workers: PictureWorkers) -> None:
    files = [encoded(side) for side in range(2, 42)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(workers.decode, files))
    assert [picture.size for picture in found] == [(side, side) for side in range(2, 42)]
    assert len(workers._idle) <= 2


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no limit of memory here")
def test_a_picture_over_the_memory_is_refused_and_the_next_one_is_not() -> None:
    workers = PictureWorkers(1, most_bytes=2**24)
    with pytest.raises(ImageRefused) as found:
        workers.decode(encoded(3000))
    assert found.value.reason == "image_undecodable"
    assert workers.decode(encoded(30)).size == (30, 30)
    workers.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit of time here")
def test_a_picture_that_takes_too_long_ends_two_workers_and_is_refused() -> None:
    workers = PictureWorkers(1, most_seconds=0.02)
    with pytest.raises(ImageRefused, match=r"more than 0\.02 s of computing"):
        workers.decode(encoded(3000))
    assert workers.decode(encoded(30)).size == (30, 30)
    workers.close()


def test_a_worker_that_somebody_else_ended_is_replaced(workers: PictureWorkers) -> None:
    workers.decode(encoded(3))
    for worker in workers._idle:
        worker.kill()
        worker.wait()
    assert workers.decode(encoded(5)).size == (5, 5)


def test_a_worker_that_cannot_start_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="does not start"):
        PictureWorkers(1).decode(encoded(3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own_workers() -> None:
    decode_apart(encoded(3))
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, b"%d %d" % (len(picture_workers._shared), decode_apart(encoded(4)).width))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(here, 20) == b"0 4"
    assert decode_apart(encoded(5)).width == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_ends_although_a_forked_process_holds_its_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_workers, "SECONDS_TO_END", 0.1)
    workers = PictureWorkers(1)
    workers.decode(encoded(3))
    process = workers._idle[0]
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    workers.close()
    assert process.returncode is not None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
