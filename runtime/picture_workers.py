"""Decode pictures in processes of their own, with limits on memory and time.

Files of strangers reach a decoder written in C. A file that crashes it, fills the memory or never ends is refused like
any other broken picture: the run goes on in a new process.
"""

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from PIL import Image

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, ImageRefused, check_file_size
from runtime.picture_worker import read, write
from runtime.threads import available_cores

MOST_BYTES = 2**30  # of memory for a picture of `MAX_IMAGE_PIXELS`; a picture of the fuzz tests takes less
BYTES_PER_PIXEL = 16  # more for each pixel above that limit
MOST_SECONDS = 60.0  # of computing for one picture; the slowest of the fuzz tests takes under 2
SECONDS_TO_END = 2.0


class PictureWorkers:
    """Processes that decode; one is started when all others are at work, up to `count`.

    Safe to use from several threads: `count` of them decode at once.

    Args:
        count: None = one for each core.
        most_bytes: memory that one process may take beyond what it starts with.
        most_seconds: CPU seconds for one picture.
    """

    def __init__(
        self, count: int | None = None, *, most_bytes: int = MOST_BYTES, most_seconds: float = MOST_SECONDS
    ) -> None:
        self.count = available_cores() if count is None else count
        self._limits = (str(most_bytes), str(most_seconds))
        self._free = threading.BoundedSemaphore(self.count)
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []

    def decode(self, data: bytes, **options: Any) -> Image.Image:
        """`decode_image` of `modeling_oclear` in a worker; arguments and errors are its own.

        Raises:
            ImageRefused: also for a picture that ends two workers one after the other.
            ValueError: a worker does not start.
        """
        check_file_size(len(data), options.get("max_bytes", MAX_IMAGE_BYTES))
        with self._free:
            # A worker may have been ended by somebody else: only a new one says something about the picture.
            reply = self._asked(self._idle_worker() or self._started(), data, options)
            reply = reply or self._asked(self._started(), data, options)
        if reply is None:
            seconds = self._limits[1]
            raise ImageRefused(
                "image_undecodable", f"image ends its decoder (a crash, or more than {seconds} s of computing)"
            )
        header, pixels = reply
        if "reason" in header:
            raise ImageRefused(header["reason"], header["sentence"])
        return Image.frombytes(header["mode"], tuple(header["size"]), pixels)

    def close(self) -> None:
        """End the workers that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            _stop(worker)

    def _idle_worker(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _asked(
        self, worker: subprocess.Popen[bytes], data: bytes, options: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes] | None:
        """The reply of a worker, which is idle then, or None if it ended instead."""
        requests, replies = _streams(worker)
        try:
            write(requests, options, data)
            reply = read(replies)
        except (EOFError, BrokenPipeError):
            _stop(worker)
            return None
        except BaseException:  # such as KeyboardInterrupt: half a message is under way
            worker.kill()
            _stop(worker)
            raise
        with self._lock:
            self._idle.append(worker)
        return reply

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runtime.picture_worker", *self._limits]
        # The worker imports what this process imports, whatever folder the user is in.
        paths = os.pathsep.join(dict.fromkeys(str(Path(path or ".").absolute()) for path in sys.path))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            read(_streams(worker)[1])
        except EOFError as error:
            _stop(worker)
            shown = " ".join(command)
            raise ValueError(
                f"the process that decodes pictures does not start (exit {worker.returncode}); `{shown}` says why"
            ) from error
        return worker


def _streams(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    return worker.stdin, worker.stdout


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End a worker: it goes when its stdin is closed, or is killed where a forked process still holds that open."""
    requests, replies = _streams(worker)
    with contextlib.suppress(BrokenPipeError):
        requests.close()
    replies.close()
    try:
        worker.wait(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


_shared: dict[int, PictureWorkers] = {}
_lock = threading.Lock()


@atexit.register
def _close_shared() -> None:
    """End the shared workers with this process, so that their CPU time counts as its own."""
    for workers in _shared.values():
        workers.close()


def _forget_shared() -> None:
    """Leave the workers to the parent: a forked process must not write into its pipes."""
    global _lock
    _shared.clear()
    _lock = threading.Lock()  # a thread of the parent may have held the other one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_shared)


def decode_apart(data: bytes, **options: Any) -> Image.Image:
    """`decode_image` in a worker that this process shares; arguments and errors are its own.

    Raises:
        ImageRefused: see `PictureWorkers.decode`.
    """
    max_pixels = options.get("max_pixels", MAX_IMAGE_PIXELS)
    most_bytes = MOST_BYTES + BYTES_PER_PIXEL * max(0, max_pixels - MAX_IMAGE_PIXELS)
    with _lock:
        workers = _shared.setdefault(most_bytes, PictureWorkers(most_bytes=most_bytes))
    return workers.decode(data, **options)
