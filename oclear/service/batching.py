"""Dynamic batching: searches that wait together are embedded in one forward pass.

One thread takes what is waiting, up to a number, and computes. While it computes the next ones collect, so batches grow
with the load by themselves and a single search waits for nobody.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class TooManyWaiting(Exception):
    """So many jobs wait that another one is not taken."""


class Batcher(Generic[Job, Answer]):
    """Runs `compute` on jobs in batches, in one thread.

    Args:
        compute: gives an answer, or the error, for each job of a batch; what it raises is the answer to all.
        batch: jobs at once, at most. waiting: jobs that may wait.
    """

    def __init__(
        self, compute: Callable[[Sequence[Job]], Sequence[Answer | Exception]], *, batch: int, waiting: int
    ) -> None:
        self._compute, self._batch = compute, batch
        self._queue: queue.Queue[tuple[Job, Future[Answer]] | None] = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that wait now, about."""
        return self._queue.qsize()

    def submit(self, job: Job) -> "Future[Answer]":
        """The answer to a job, when it is there.

        Raises:
            TooManyWaiting: try again later; also after `close`.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._closed:
                raise TooManyWaiting("the service is shutting down")
            try:
                self._queue.put_nowait((job, future))
            except queue.Full as error:
                raise TooManyWaiting(f"{self._queue.maxsize} searches are waiting") from error
        return future

    def close(self) -> None:
        """Take no more jobs, finish those that wait, and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            taken = [self._queue.get()]
            while len(taken) < self._batch and taken[-1] is not None:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = taken[-1] is None
            # A client that has gone away has cancelled its future: nothing is computed for it.
            jobs = [one for one in taken if one is not None and one[1].set_running_or_notify_cancel()]
            if jobs:
                self._answer(jobs)

    def _answer(self, jobs: "Sequence[tuple[Job, Future[Answer]]]") -> None:
        try:
            answers = self._compute([job for job, _ in jobs])
        except Exception as error:  # noqa: BLE001 - the thread must live on, and each caller gets the error
            answers = [error] * len(jobs)
        for (_, future), answer in zip(jobs, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
