"""The HTTP interface: search, documents, health, metrics, and the search page."""

import base64
import binascii
import contextlib
import json
import tempfile
from asyncio import wait_for, wrap_future
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from oclear import __version__
from oclear.frames import as_file
from oclear.service.batching import TooManyWaiting
from oclear.service.engine import Found, SearchEngine
from oclear.service.guards import Guards, Message, Metrics, error_of
from oclear.service.settings import Settings
from retrieval.index import changes
from retrieval.index.folder import IndexBusy
from retrieval.index.search import SearchOptions, json_ready, lines_of
from retrieval.index.store import Index
from retrieval.pictures import PictureError, decoded
from retrieval.tables import CATALOGUE, FIELDS, read_table

HERE = Path(__file__).parent
# The page may load its own two files and show pictures that it was given, and nothing else.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Answer(BaseModel):
    """A document that was found."""

    rank: int
    doc_id: str
    score: float = Field(description="Higher is better; comparable between the answers to one picture only.")
    text: str | None
    leaf: str | None
    fields: dict[str, Any] = Field(default={}, description="The catalogue's own columns.")
    same: list[str] | None = Field(default=None, description="With `fold`: documents that are close to this one.")
    thumbnail: str | None = Field(default=None, description="With `details`: what the model saw, WebP in base64.")
    attention: list[int] | None = Field(
        default=None, description="With `details`: where the text looked, row by row of `grid`, 0 to 255."
    )


class SearchResult(BaseModel):
    """The answers to a picture, best first."""

    request_id: str
    version: int = Field(description="Of the index.")
    documents: int = Field(description="That the index holds.")
    grid: tuple[int, int] = Field(description="Rows and columns of an attention map.")
    answers: list[Answer]


class Documents(BaseModel):
    """Documents to add, to replace, or to change fields of."""

    documents: list[dict[str, Any]] = Field(
        min_length=1,
        description="doc_id; image in base64 and text, for documents as a whole; and the catalogue's own columns.",
        examples=[[{"doc_id": "d17", "text": "red mug", "price": 3.5}]],
    )


class DocumentIds(BaseModel):
    """Documents to remove."""

    doc_ids: list[str] = Field(min_length=1)


def create_app(settings: Settings) -> Guards:
    """The ASGI application of a service.

    Args:
        settings: what it serves, and its limits.

    Raises:
        ValueError: a model or an index that cannot be opened, or that do not belong together.
    """
    metrics = Metrics()
    found = SearchEngine(settings, on_batch=metrics.batch.observe)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(found.close)

    # The pages of FastAPI that show the interface load scripts from elsewhere: /openapi.json alone is served.
    app = FastAPI(title="OCLEAR search", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.engine, app.state.metrics, app.state.settings = found, metrics, settings
    _add_search(app)
    _add_documents(app)
    _add_operation(app)
    _add_page(app)
    _add_errors(app)
    return Guards(app, settings, metrics, _route_of)


def _route_of(scope: Message) -> str:
    """The route of a request, so that metrics have one series for all documents; "none" if it was not let in."""
    return getattr(scope.get("route"), "path", "none")


def _add_search(app: FastAPI) -> None:
    engine, settings = app.state.engine, app.state.settings

    @app.post("/search")
    async def search(
        request: Request,
        image: Annotated[UploadFile, File(description="The picture to search with.")],
        k: Annotated[int, Form(ge=1, le=settings.max_k)] = 10,
        where: Annotated[str, Form(description="Condition, such as: price < 50 and brand = 'x'.")] = "",
        group_by: Annotated[str, Form(description="A column of which each value is answered once.")] = "",
        fold: Annotated[float | None, Form(gt=0, le=1, description="Cosine to fold close documents.")] = None,
        box: Annotated[str, Form(description="left,top,right,bottom as shares of the picture.")] = "",
        details: Annotated[bool, Form(description="Thumbnails and attention maps too.")] = False,
    ) -> SearchResult:
        """Find documents like what a picture shows."""
        options = SearchOptions(k=k, where=where.strip() or None, group_by=group_by.strip() or None, fold=fold)
        sides = box_of(box)
        content = await image.read()
        picture = await run_in_threadpool(_picture, content, sides, engine)
        answers = wrap_future(engine.search(picture, options))
        found: Found = await wait_for(answers, settings.search_seconds)
        return await run_in_threadpool(_result, request.state.request_id, found, details)


def _picture(content: bytes, box: tuple[float, float, float, float] | None, engine: SearchEngine) -> Image.Image:
    if not content:
        raise PictureError("the image is empty")
    picture = decoded(content, **engine.state.model.decoding)
    if box is None:
        return picture
    width, height = picture.size
    left, top = int(box[0] * width), int(box[1] * height)
    right, bottom = max(round(box[2] * width), left + 1), max(round(box[3] * height), top + 1)
    return picture.crop((left, top, min(right, width), min(bottom, height)))


def box_of(text: str) -> tuple[float, float, float, float] | None:
    """left, top, right, bottom of a box as shares of the picture; None for an empty text.

    Raises:
        ValueError: not four numbers, outside the picture, or without area.

    >>> box_of("0.1, 0.2, 0.5, 1")
    (0.1, 0.2, 0.5, 1.0)
    """
    if not text.strip():
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"box is {text[:80]!r}; give left,top,right,bottom as numbers from 0 to 1") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"box is {text[:80]!r}; it must lie in the picture (0 to 1) and have left < right, top < bottom"
        )
    return left, top, right, bottom


def _result(request_id: str, found: Found, details: bool) -> SearchResult:
    index, ranked = found.state.index, found.ranked
    lines = lines_of(index, ranked)
    if details:
        shown = index.documents.select(["thumbnail", "attention"]).take(pa.array(ranked.rows, pa.int64())).to_pylist()
        for line, row in zip(lines, shown, strict=True):
            line["thumbnail"] = None if row["thumbnail"] is None else base64.b64encode(row["thumbnail"]).decode()
            line["attention"] = None if row["attention"] is None else list(row["attention"])
    return SearchResult(
        request_id=request_id,
        version=found.state.version.number,
        documents=len(index),
        grid=(int(index.info["grid"][0]), int(index.info["grid"][1])),
        answers=[Answer(**line) for line in lines],
    )


def _add_documents(app: FastAPI) -> None:
    engine, settings = app.state.engine, app.state.settings

    @app.get("/documents/{doc_id:path}")
    def document(doc_id: str) -> dict[str, Any]:
        """A document of the index, with its fields."""
        index: Index = engine.state.index
        mask = pa.compute.equal(index.documents.column("doc_id"), doc_id).to_numpy()
        [*rows] = (mask if index.alive_N is None else mask & index.alive_N).nonzero()[0]
        if not rows:
            raise HTTPException(404, f"the index has no document {doc_id[:80]!r}")
        taken = pa.array(rows, pa.int64())
        [row] = index.documents.select(["doc_id", "text", "leaf", "has_image", "has_text"]).take(taken).to_pylist()
        [fields] = index.fields.take(taken).to_pylist() if index.fields.num_columns else [{}]
        return row | {"fields": json_ready(fields)}

    @app.put("/documents")
    def upsert(body: Documents) -> dict[str, Any]:
        """Add documents, or replace those of the same id with all their fields."""
        rows = [_with_bytes(row) for row in _limited(body.documents, settings)]
        with _request_folder() as inputs:
            table = read_table(as_file(_columns(rows), name="catalogue", folder=inputs), CATALOGUE)
            return engine.change(lambda encoder: changes.upsert(encoder, engine.folder, table), embeds=True)

    @app.patch("/documents")
    def update(body: Documents) -> dict[str, Any]:
        """Change fields of documents; what they show and say stays."""
        with _request_folder() as inputs:
            rows = _columns(_limited(body.documents, settings))
            table = read_table(as_file(rows, name="fields", folder=inputs), FIELDS)
            return engine.change(lambda _: changes.update_fields(engine.folder, table), embeds=False)

    @app.post("/documents/delete")
    def delete(body: DocumentIds) -> dict[str, Any]:
        """Remove documents."""
        return engine.change(lambda _: changes.delete(engine.folder, body.doc_ids), embeds=False)

    @app.post("/documents/compact")
    def compact() -> dict[str, Any]:
        """Write all changes into a new base; searches go on meanwhile."""
        return engine.change(lambda _: changes.compact(engine.folder), embeds=False)


@contextlib.contextmanager
def _request_folder() -> Iterator[Path]:
    """A folder for the tables of one request, which no message names."""
    with tempfile.TemporaryDirectory() as place:
        try:
            yield Path(place)
        except IndexBusy:
            raise
        except ValueError as error:
            raise ValueError(str(error).replace(f"{place}/", "")) from error


def _limited(documents: Sequence[dict[str, Any]], settings: Settings) -> Sequence[dict[str, Any]]:
    if len(documents) > settings.max_documents:
        raise ValueError(f"{len(documents)} documents in one change; at most {settings.max_documents:,} are taken")
    return documents


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """A document with its image as bytes."""
    image = row.get("image")
    if image is None:
        return row | {"image": None}
    try:
        if not isinstance(image, str):
            raise ValueError("not a text")
        return row | {"image": base64.b64decode(image, validate=True)}
    except (ValueError, binascii.Error) as error:
        name = str(row.get("doc_id"))[:80]
        raise ValueError(
            f"document {name!r}: image is no base64 of a picture file ({error}); paths are not read"
        ) from error


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, with every name that one of them has."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _add_operation(app: FastAPI) -> None:
    engine, metrics = app.state.engine, app.state.metrics

    @app.get("/health")
    def health() -> JSONResponse:
        """Embeds a picture and searches with it: 200 if that works, else 503."""
        try:
            return JSONResponse({"status": "ok"} | engine.health())
        except (TooManyWaiting, TimeoutError, ValueError, RuntimeError) as error:
            return JSONResponse({"status": "unhealthy", "reason": str(error) or type(error).__name__}, status_code=503)

    @app.get("/metrics")
    def report() -> PlainTextResponse:
        """Counters and times in the format of Prometheus."""
        metrics.waiting.set(engine.waiting)
        metrics.documents.set(len(engine.state.index))
        metrics.version.set(engine.state.version.number)
        return PlainTextResponse(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    engine, settings = app.state.engine, app.state.settings

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        # Whoever has no key yet is not told what the catalogue holds.
        columns = [] if settings.search_keys else ["doc_id", "text", "leaf", *engine.state.index.fields.column_names]
        facts = {"columns": columns, "key": bool(settings.search_keys)}
        text = (HERE / "page.html").read_text(encoding="utf-8")
        # Names of columns come from a table: they must not end the element that holds them.
        escaped = json.dumps(facts).replace("<", "\\u003c")
        return HTMLResponse(
            text.replace("{{ facts }}", escaped), headers=HEADERS | {"Content-Security-Policy": PAGE_POLICY}
        )

    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        app.get(f"/{name}", include_in_schema=False)(
            lambda name=name, kind=kind: FileResponse(HERE / name, media_type=kind, headers=HEADERS)
        )


def _add_errors(app: FastAPI) -> None:
    def error(request: Request, status: int, code: str, sentence: str) -> JSONResponse:
        wait = {"Retry-After": "1"} if status in (429, 503) else {}
        return JSONResponse(error_of(code, sentence, request.state.request_id), status_code=status, headers=wait)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return error(request, 400, "invalid_request", f"{where}: {first['msg']}"[:500])

    @app.exception_handler(HTTPException)
    def refused(request: Request, problem: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(problem.status_code, "invalid_request")
        return error(request, problem.status_code, code, str(problem.detail))

    @app.exception_handler(PictureError)
    def unusable(request: Request, problem: PictureError) -> JSONResponse:
        return error(request, 400, "image_unusable", str(problem))

    @app.exception_handler(ValueError)
    def wrong(request: Request, problem: ValueError) -> JSONResponse:
        return error(request, 400, "invalid_request", str(problem)[:500])

    @app.exception_handler(IndexBusy)
    def writing(request: Request, _: IndexBusy) -> JSONResponse:
        return error(request, 503, "index_busy", "another process writes to the index: wait and try again")

    @app.exception_handler(Exception)
    def failed(request: Request, _: Exception) -> JSONResponse:
        return error(request, 500, "internal_error", "the service failed; its log has the reason under this request_id")

    @app.exception_handler(TooManyWaiting)
    def busy(request: Request, problem: TooManyWaiting) -> JSONResponse:
        return error(request, 429, "too_many_waiting", f"{problem}: wait and try again")

    @app.exception_handler(TimeoutError)
    def late(request: Request, _: TimeoutError) -> JSONResponse:
        return error(request, 503, "too_slow", "the search took too long: wait and try again")
