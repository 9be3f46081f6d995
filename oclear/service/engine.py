"""What the service computes: a model and an index that may be replaced while searches go on."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oclear.encoding import EncodingModel
from oclear.loading import load
from oclear.service.batching import Batcher, TooManyWaiting
from oclear.service.settings import Settings
from retrieval.encoder import RetrievalEncoder, fingerprint, load_encoder
from retrieval.index import changes
from retrieval.index.folder import Version, current_version, load_index
from retrieval.index.search import Ranked, SearchOptions, ranked
from retrieval.index.store import Index

HEALTH_SIZE = 64
HEALTH_SECONDS = 1.0
WAITING_CHANGES = 8  # each holds a thread of the server
LEAST_TO_COMPACT = 1_000  # changed rows: fewer cost a search nothing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """A model and an index that belong together.

    Attributes:
        version: of the index. encoder: fingerprint of the model's query side.
    """

    model: EncodingModel
    index: Index
    version: Version
    encoder: str


@dataclass(frozen=True)
class Job:
    """A picture to search with."""

    picture: Image.Image
    options: SearchOptions


@dataclass(frozen=True)
class Found:
    """Ranked rows, and the state that they are rows of."""

    ranked: Ranked
    state: State


class SearchEngine:
    """Searches and changes of one index; safe to use from several threads.

    Args:
        settings: of the service.
        on_batch: is called with the size of every batch.
    """

    def __init__(self, settings: Settings, *, on_batch: Callable[[int], None] = lambda size: None) -> None:
        self.settings = settings
        self.folder = Path(settings.index)
        self._on_batch = on_batch
        self._state = self._loaded(None)
        self._switching, self._writing, self._compacting = threading.Lock(), threading.Lock(), threading.Lock()
        self.waiting_changes = 0
        self._counting, self._checking = threading.Lock(), threading.Lock()
        self._checked: tuple[float, dict[str, Any]] = (-math.inf, {})
        self._document_encoder: RetrievalEncoder | None = None
        self._batcher: Batcher[Job, Found] = Batcher(self._answers, batch=settings.batch, waiting=settings.waiting)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    @property
    def state(self) -> State:
        """What is searched now."""
        return self._state

    @property
    def waiting(self) -> int:
        """Searches that wait now."""
        return self._batcher.waiting

    def search(self, picture: Image.Image, options: SearchOptions) -> "Future[Found]":
        """The answers to a picture.

        Raises:
            TooManyWaiting: try again later.
        """
        return self._batcher.submit(Job(picture, options))

    def _answers(self, jobs: Sequence[Job]) -> list[Found | Exception]:
        state = self.state
        self._on_batch(len(jobs))
        embeds_BD = state.model.embed_queries([job.picture for job in jobs])
        found: list[Found | Exception] = [RuntimeError("not answered")] * len(jobs)
        alike: dict[SearchOptions, list[int]] = {}
        for place, job in enumerate(jobs):
            alike.setdefault(job.options, []).append(place)
        for options, places in alike.items():
            try:
                for place, one in zip(places, ranked(state.index, embeds_BD[places], options), strict=True):
                    found[place] = Found(one, state)
            except ValueError as error:  # a condition that does not fit concerns those alone who gave it
                for place in places:
                    found[place] = error
        return found

    def health(self) -> dict[str, Any]:
        """What `check` says, at most HEALTH_SECONDS old: whoever asks often costs no searches."""
        with self._checking:
            when, found = self._checked
            if time.monotonic() - when > HEALTH_SECONDS:
                found = self.check()
                self._checked = (time.monotonic(), found)
        return found

    def check(self) -> dict[str, Any]:
        """Embed and search a picture, as a search would.

        Raises:
            TooManyWaiting, TimeoutError, ValueError: the service is not healthy.
        """
        shade = np.linspace(0, 255, HEALTH_SIZE, dtype=np.uint8)
        picture = Image.fromarray(np.broadcast_to(shade[:, None, None], (HEALTH_SIZE, HEALTH_SIZE, 3)).copy())
        found = self.search(picture, SearchOptions(k=1)).result(self.settings.search_seconds)
        if not found.ranked.rows or not np.isfinite(found.ranked.scores).all():
            raise ValueError("a search with a test picture has no finite score")
        if not self._watcher.is_alive():
            raise ValueError("the index is no longer watched for new versions")
        return {"documents": len(found.state.index), "version": found.state.version.number}

    def change(self, operation: Callable[[RetrievalEncoder | None], dict[str, Any]], *, embeds: bool) -> dict[str, Any]:
        """Run a change of the index folder, one at a time, and search its new version.

        Args:
            operation: of `retrieval.index.changes`, given the encoder of documents if `embeds`.

        Raises:
            TooManyWaiting: try again later.
            ValueError: what the operation refuses, or the folder holds an index of another model than the one served.
        """
        with self._counting:
            if self.waiting_changes == WAITING_CHANGES:
                raise TooManyWaiting(f"{WAITING_CHANGES} changes are waiting")
            self.waiting_changes += 1
        try:
            with self._writing:
                if load_index(self.folder).info["model"] != self.state.encoder:
                    raise ValueError("the index folder now belongs to another model than the one that is served")
                counts = operation(self._encoder() if embeds else None)
        finally:
            with self._counting:
                self.waiting_changes -= 1
        try:
            self.refresh()
        except ValueError as error:  # the change is done all the same
            logger.warning("the changed index cannot be searched: %s", error)
        self._checked = (-math.inf, {})
        index, share = self.state.index, self.settings.compact_share
        if share and changes.changed_rows(index) > max(share * len(index), LEAST_TO_COMPACT):
            threading.Thread(target=self._compact, name="compaction", daemon=True).start()
        return counts

    def _compact(self) -> None:
        if not self._compacting.acquire(blocking=False):
            return  # one is enough
        try:
            self.change(lambda _: changes.compact(self.folder), embeds=False)
        except (TooManyWaiting, ValueError) as error:
            logger.warning("the index was not compacted: %s", error)
        finally:
            self._compacting.release()

    def _encoder(self) -> RetrievalEncoder:
        """The whole model in torch, which embeds documents; loaded with the first of them."""
        wanted = load_index(self.folder).info.get("documents_model")
        for encoder in (getattr(self.state.model, "encoder", None), self._document_encoder):
            if encoder is not None and wanted in (None, encoder.documents_fingerprint):
                return encoder
        self._document_encoder = _with_fingerprint(load_encoder(self.settings.model, device=self.settings.device))
        return self._document_encoder

    def refresh(self) -> bool:
        """Search the newest version of the folder, if it is another one; whether it was.

        Raises:
            ValueError: it cannot be opened; the version before is searched on.
        """
        with self._switching:
            if current_version(self.folder).id == self.state.version.id:
                return False
            self._state = state = self._loaded(self._state)
        logger.info("searching version %d of the index: %d documents", state.version.number, len(state.index))
        return True

    def _loaded(self, before: State | None) -> State:
        """The newest index with its model, which is loaded again if the index belongs to another one."""
        version = current_version(self.folder)
        index = load_index(self.folder, version=version.number)
        if before is not None and index.info["model"] == before.encoder:
            return State(before.model, index, version, before.encoder)
        backend = self.settings.backend
        if backend == "auto":
            backend = "onnx" if (Path(self.settings.model) / "onnx" / "query.onnx").is_file() else "torch"
        device = self.settings.device if backend == "torch" else "auto"
        model = load(self.settings.model, device=device, backend=backend)  # type: ignore[call-overload]
        folder = model.folder if backend == "onnx" else _with_fingerprint(model.encoder).folder
        index.check_model(folder)
        return State(model, index, version, fingerprint(folder))

    def _watch(self) -> None:
        reported = ""
        while not self._ended.wait(self.settings.poll_seconds):
            try:
                self.refresh()
                reported = ""
            except Exception as error:  # noqa: BLE001 - a folder that is half copied must not end the watch
                if str(error) != reported:
                    logger.warning("a new version of the index cannot be searched: %s", error)
                reported = str(error)

    def close(self) -> None:
        """Finish the searches that wait, and end the threads."""
        self._ended.set()
        self._batcher.close()
        self._watcher.join()


def _with_fingerprint(encoder: RetrievalEncoder) -> RetrievalEncoder:
    """The encoder, with the fingerprint of the files that it was just loaded from: these may be replaced later."""
    _ = encoder.documents_fingerprint
    return encoder
