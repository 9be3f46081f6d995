"""The service as its users meet it: a real process on loopback."""

import asyncio
import base64
import functools
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import oclear
from oclear.export import export
from oclear.frames import as_file
from oclear.service.api import box_of
from oclear.service.batching import Batcher, TooManyWaiting
from oclear.service.guards import Guards, Metrics
from oclear.service.settings import Settings, keys_of
from retrieval.index.search import SearchOptions
from tests.oclear.service.conftest import Shop, log_lines, new_index, serving
from tests.support.images import encode
from tests.support.tiny_retrieval import drawing

KEY = "a-key-for-writing"


def png(picture: Image.Image) -> bytes:
    return encode(picture)


@pytest.fixture(scope="module")
def service(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """(client, index folder) of a service that takes changes."""
    index = new_index(shop, tmp_path_factory.mktemp("served") / "index")
    with serving(shop, index, OCLEAR_WRITE_KEYS=KEY) as (client, _):
        yield client, index


def test_a_search_gives_what_the_library_gives(shop: Shop, service: Any) -> None:
    client, folder = service
    picture = drawing("teal", "wedge")
    data = {"k": "5", "where": "price < 20 and brand = 'o''x'", "details": "true"}
    found = client.post("/search", files={"image": png(picture)}, data=data).json()
    hits = oclear.load(shop.model).load_index(folder).search(picture, k=5, where=data["where"]).to_list()
    assert [answer["doc_id"] for answer in found["answers"]] == [hit["doc_id"] for hit in hits]
    np.testing.assert_allclose([one["score"] for one in found["answers"]], [hit["score"] for hit in hits], atol=1e-5)
    first = found["answers"][0]
    assert first["fields"] == hits[0]["fields"]
    assert Image.open(io.BytesIO(base64.b64decode(first["thumbnail"]))).format == "WEBP"
    assert len(first["attention"]) == found["grid"][0] * found["grid"][1]
    assert found["documents"] == len(shop.rows)


def test_a_box_searches_with_that_part_of_the_picture(shop: Shop, service: Any) -> None:
    client, folder = service
    both = Image.new("RGB", (74, 33), "white")
    both.paste(drawing("red", "box"), (0, 0))
    both.paste(drawing("blue", "ring"), (37, 0))
    found = client.post("/search", files={"image": png(both)}, data={"k": "3", "box": "0.5,0,1,1"}).json()
    alone = client.post("/search", files={"image": png(drawing("blue", "ring"))}, data={"k": "3"}).json()
    assert [one["doc_id"] for one in found["answers"]] == [one["doc_id"] for one in alone["answers"]]


def test_documents_are_added_changed_and_deleted_while_it_runs(shop: Shop, service: Any) -> None:
    client, folder = service
    headers = {"X-API-Key": KEY}
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    image = base64.b64encode(png(picture)).decode()
    new = {"doc_id": "new/1", "image": image, "text": "", "price": 1.5, "brand": "n"}
    broken = {"doc_id": "new/2", "image": base64.b64encode(b"no picture").decode(), "text": ""}
    counts = client.put("/documents", json={"documents": [new, broken]}, headers=headers).json()
    assert (counts["given"], counts["added"], counts["skipped"]) == (2, 1, 1)
    assert counts["skipped_documents"][0]["doc_id"] == "new/2"
    assert "cannot be decoded" in counts["skipped_documents"][0]["reason"]
    found = client.post("/search", files={"image": png(picture)}, data={"k": "1"}).json()
    assert found["answers"][0]["doc_id"] == "new/1"
    assert client.get("/documents/new/1").json()["fields"] == {"price": 1.5, "brand": "n"}
    change = {"documents": [{"doc_id": "new/1", "price": 99.0}, {"doc_id": "nobody", "price": 1.0}]}
    assert client.patch("/documents", json=change, headers=headers).json()["updated"] == 1
    assert client.get("/documents/new/1").json()["fields"] == {"price": 99.0, "brand": "n"}
    assert client.post("/documents/compact", headers=headers).json()["documents"] == len(shop.rows) + 1
    gone = client.post("/documents/delete", json={"doc_ids": ["new/1", "nobody"]}, headers=headers).json()
    assert (gone["deleted"], gone["unknown"], gone["documents"]) == (1, 1, len(shop.rows))
    assert client.get("/documents/new/1").status_code == 404
    assert len(oclear.load(shop.model).load_index(folder)) == len(shop.rows)


def test_an_index_that_has_changed_much_is_compacted_by_itself(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oclear.service import engine
    from retrieval.index import changes
    from retrieval.index.folder import current_version

    def delete(name: str, _: Any) -> dict[str, Any]:
        return changes.delete(index, [name])

    monkeypatch.setattr(engine, "LEAST_TO_COMPACT", 3)
    index = new_index(shop, tmp_path / "index")
    running = engine.SearchEngine(Settings(str(shop.model), index, backend="torch", poll_seconds=60))
    try:
        for name in ("d/0", "d/1", "d/2"):
            running.change(functools.partial(delete, name), embeds=False)
        assert len(current_version(index).changes) == 3
        running.change(functools.partial(delete, "d/9"), embeds=False)
        end = time.monotonic() + 20
        while current_version(index).changes and time.monotonic() < end:
            time.sleep(0.05)
        assert current_version(index).cause == "compact"
        found = running.search(drawing("red", "box"), SearchOptions(k=99)).result(20)
        assert len(found.ranked.rows) == len(shop.rows) - 4
    finally:
        running.close()


def test_another_process_may_change_the_index(shop: Shop, service: Any) -> None:
    client, folder = service
    before = client.get("/health").json()
    index = oclear.load(shop.model).load_index(folder)
    index.delete(["d/3"])
    end = time.monotonic() + 10
    while client.get("/health").json()["version"] == before["version"] and time.monotonic() < end:
        time.sleep(0.1)
    assert client.get("/health").json()["documents"] == before["documents"] - 1
    index.rollback()
    while client.get("/health").json()["documents"] != before["documents"] and time.monotonic() < end:
        time.sleep(0.1)
    assert client.get("/documents/d/3").status_code == 200


def malformed() -> list[tuple[str, dict[str, Any]]]:
    """Requests that must be refused: name, arguments of the client."""
    good = png(drawing("red", "box"))
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    jpeg = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(jpeg, "JPEG")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    search: list[tuple[str, dict[str, Any]]] = [
        ("no body", {}),
        ("no image", {"data": {"k": "3"}}),
        ("empty image", {"files": {"image": b""}}),
        ("text as image", {"files": {"image": b"hello"}}),
        ("html as image", {"files": {"image": b"<html>" * 9}}),
        ("svg", {"files": {"image": b'<svg xmlns="http://www.w3.org/2000/svg"/>'}}),
        ("zeros", {"files": {"image": bytes(5000)}}),
        ("a cut PNG", {"files": {"image": good[: len(good) // 2]}}),
        ("a PNG header alone", {"files": {"image": good[:40]}}),
        ("a cut JPEG header", {"files": {"image": jpeg.getvalue()[:30]}}),
        ("a bomb", {"files": {"image": bomb.getvalue()}}),
        ("too many bytes", {"files": {"image": bytes(26_000_000)}}),
        ("k of 0", {"data": {"k": "0"}}),
        ("k below 0", {"data": {"k": "-5"}}),
        ("k too large", {"data": {"k": "1000000"}}),
        ("k of letters", {"data": {"k": "ten"}}),
        ("k is nan", {"data": {"k": "nan"}}),
        ("fold of 2", {"data": {"fold": "2"}}),
        ("an injection", {"data": {"where": "1=1; drop table documents"}}),
        ("a file in where", {"data": {"where": "read_text('/etc/passwd') = 'x'"}}),
        ("a subquery", {"data": {"where": "price in (select 1)"}}),
        ("deep brackets", {"data": {"where": "(" * 990 + "1" + ")" * 990}}),
        ("a long condition", {"data": {"where": "price < 1 or " * 9000}}),
        ("an unknown column", {"data": {"where": "prise < 3"}}),
        ("a wrong type", {"data": {"where": "brand < 3"}}),
        ("no condition", {"data": {"where": "select"}}),
        ("an unknown group", {"data": {"group_by": "nothing"}}),
        ("a box of three", {"data": {"box": "0,0,1"}}),
        ("a box outside", {"data": {"box": "0,0,2,1"}}),
        ("a box without area", {"data": {"box": "0.5,0,0.5,1"}}),
        ("a box of nan", {"data": {"box": "nan,0,1,1"}}),
        ("JSON for a form", {"json": {"image": "x"}}),
        (
            "a broken form",
            {"content": b"--x\r\nContent-Dis", "headers": broken},
        ),
        ("a form without boundary", {"content": b"x", "headers": {"content-type": "multipart/form-data"}}),
    ]
    for _, one in search:
        if "data" in one and one["data"] != {"k": "3"}:
            one["files"] = {"image": good}
    return search


def test_malformed_searches_are_refused_with_a_sentence_and_harm_nobody(service: Any) -> None:
    client, _ = service
    good: dict[str, Any] = {"files": {"image": png(drawing("red", "box"))}, "data": {"k": "3"}}
    truth = [one["doc_id"] for one in client.post("/search", **good).json()["answers"]]

    def ask(case: tuple[str, dict[str, Any]]) -> tuple[str, int, Any]:
        response = client.post("/search", **case[1])
        return case[0], response.status_code, response.json()

    cases = malformed()
    mixed = [case for pair in zip(cases, [("good", good)] * len(cases), strict=True) for case in pair]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, mixed))
    for name, status, body in answers:
        if name == "good":
            assert (status, [one["doc_id"] for one in body["answers"]]) == (200, truth)
        else:
            assert 400 <= status < 500, (name, status, body)
            assert 8 < len(body["error"]["message"]) <= 600, (name, body)
            assert body["request_id"], name
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status"),
    [
        ("PUT", "/documents", {"json": {"documents": []}}, 400),
        ("PUT", "/documents", {"json": {"documents": [{"text": "x"}]}}, 400),
        ("PUT", "/documents", {"json": {"documents": [{"doc_id": "a", "text": "x", "image": "/etc/passwd"}]}}, 400),
        ("PUT", "/documents", {"json": {"documents": [{"doc_id": "a", "text": "x", "image": 3}]}}, 400),
        ("PUT", "/documents", {"json": {"documents": [{"doc_id": "a", "text": "a", "price": "dear"}]}}, 400),
        ("PUT", "/documents", {"json": {"documents": [{"doc_id": f"{n}", "text": "a"} for n in range(1001)]}}, 400),
        ("PUT", "/documents", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("PATCH", "/documents", {"json": {"documents": [{"doc_id": "d/1", "text": "other"}]}}, 400),
        ("PATCH", "/documents", {"json": {"documents": [{"doc_id": "d/1", "price": 2**63}]}}, 400),
        ("PATCH", "/documents", {"json": {"documents": [{"doc_id": "d/1", "odd": {}}]}}, 400),
        ("PATCH", "/documents", {"json": {"documents": [{"doc_id": "d/1", "": 1}]}}, 400),
        ("PATCH", "/documents", {"json": {"documents": [{"doc_id": "d/1", "price": "dear"}]}}, 400),
        ("POST", "/documents/delete", {"json": {"doc_ids": []}}, 400),
        ("GET", "/documents/nobody", {}, 404),
        ("GET", "/documents/../../etc/passwd", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", "/docs", {}, 404),
        ("DELETE", "/search", {}, 405),
    ],
)
def test_malformed_changes_are_refused_and_change_nothing(
    service: Any, method: str, path: str, arguments: dict[str, Any], status: int
) -> None:
    client, _ = service
    before = client.get("/health").json()
    headers = {"X-API-Key": KEY, **arguments.pop("headers", {})}
    response = client.request(method, path, headers=headers, **arguments)
    assert (response.status_code, bool(response.json()["error"]["message"])) == (status, True), response.text
    assert client.get("/health").json() == before


def test_a_body_that_does_not_come_is_not_waited_for(shop: Shop, tmp_path: Path) -> None:
    from oclear.service.api import create_app

    index = new_index(shop, tmp_path / "index")
    app = create_app(Settings(str(shop.model), index, body_seconds=0.2, poll_seconds=60))
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            slow.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n--x")
            assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
            gone.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n--x")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as odd:
            odd.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200_000 + b"\r\n\r\n")
            assert b" 4" in odd.recv(4096).split(b"\r\n")[0]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as fine:
            fine.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b" 200 " in fine.recv(4096).split(b"\r\n")[0]
    finally:
        server.should_exit = True
        thread.join()


def test_keys_rate_ids_log_and_metrics(shop: Shop, tmp_path: Path) -> None:
    index = new_index(shop, tmp_path / "index")
    secrets = {"OCLEAR_API_KEYS": "key-of-a-reader, key-of-another", "OCLEAR_WRITE_KEYS": KEY}
    search: dict[str, Any] = {"files": {"image": png(drawing("red", "box"))}, "data": {"k": "1"}}
    with serving(shop, index, **secrets) as (client, process):
        assert client.get("/health").status_code == 200
        assert client.post("/search", **search).status_code == 401
        assert client.post("/search", **search, headers={"X-API-Key": "key-of-a-reade"}).status_code == 401
        reader = {"Authorization": "bearer key-of-a-reader"}
        found = client.post("/search", **search, headers=reader | {"X-Request-ID": "mine-1"})
        assert found.status_code == 200
        assert found.headers["x-request-id"] == found.json()["request_id"] == "mine-1"
        odd = client.post("/search", **search, headers=reader | {"X-Request-ID": "bad id\t{}"})
        assert len(odd.headers["x-request-id"]) == 32
        change: dict[str, Any] = {"json": {"doc_ids": ["d/1"]}}
        assert client.post("/documents/delete", **change, headers=reader).status_code == 401
        assert client.post("/documents/delete", **change, headers={"X-API-Key": KEY}).status_code == 200
        other = client.get("/metrics", headers={"X-API-Key": "key-of-another"})
        assert 'oclear_requests_total{route="/search",status="200"} 2.0' in other.text
        assert 'oclear_requests_total{route="none",status="401"} 3.0' in other.text
        assert f"oclear_documents {len(shop.rows) - 1}.0" in other.text
        assert "oclear_batch_size_bucket" in other.text
        interface = client.get("/openapi.json", headers={"X-API-Key": "key-of-another"}).json()
        assert {"/search", "/documents", "/health", "/metrics"} < set(interface["paths"])
    lines = log_lines(process)
    assert all(
        {"request_id", "method", "path", "status", "milliseconds"} == set(line) or "message" in line for line in lines
    )
    assert len(lines) == len(process.log.splitlines()), process.log
    assert any(line.get("request_id") == "mine-1" and line["status"] == 200 for line in lines)
    assert not any(secret in process.log for secret in ("key-of", KEY))


def asked(app: Any, path: str, *, key: str = "", address: str = "10.0.0.1") -> tuple[int, dict[str, str]]:
    """(status, headers) of a request to an application in this process."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-api-key", key.encode())] if key else []
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": (address, 1)}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_the_rate_counts_keys_or_addresses_and_says_how_long_to_wait() -> None:
    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    settings = Settings("model", Path("index"), rate=0.05, search_keys=("key-of-a-reader", "key-of-another"))
    guards = Guards(fine, settings, Metrics(), lambda _: "x")
    assert asked(guards, "/search", key="key-of-a-reader")[0] == 200
    status, headers = asked(guards, "/search", key="key-of-a-reader", address="10.0.0.2")
    assert status == 429
    assert 10 < int(headers["retry-after"]) <= 20
    assert asked(guards, "/search", key="key-of-another")[0] == 200
    assert [asked(guards, "/search", key=f"guess-{turn}")[0] for turn in range(3)] == [401, 429, 429]
    assert asked(guards, "/health")[0] == 200
    many = Guards(fine, Settings("model", Path("index"), rate=50), Metrics(), lambda _: "x")
    statuses = [asked(many, "/search")[0] for _ in range(60)]
    assert statuses[:50] == [200] * 50
    assert 429 in statuses[50:]


def test_an_error_of_the_service_is_json_too_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise RuntimeError("a bug")

    status, headers = asked(Guards(broken, Settings("m", Path("i")), Metrics(), lambda _: "x"), "/search")
    assert status == 500
    assert headers["x-request-id"] in caplog.text
    assert "a bug" in caplog.text


def test_a_folder_that_is_made_anew_is_noticed_and_a_half_copied_one_survived(shop: Shop, tmp_path: Path) -> None:
    from oclear.service import engine

    index, half = new_index(shop, tmp_path / "index"), tmp_path / "half"
    shutil.copytree(index, half)
    running = engine.SearchEngine(Settings(str(shop.model), index, backend="torch", poll_seconds=0.05))
    try:
        first = running.state.version
        shutil.rmtree(index)
        oclear.load(shop.model).index(shop.rows[:5], folder=index)
        until(lambda: len(running.state.index) == 5)
        assert running.state.version.number == first.number == 1
        (index / "current.json").write_text("[]")
        (index / "version-0002.json").write_text("{")
        time.sleep(0.3)
        assert running.health()["documents"] == 5
        shutil.rmtree(index)
        shutil.copytree(half, index)
        until(lambda: len(running.state.index) == len(shop.rows))
    finally:
        running.close()


def test_documents_are_embedded_by_the_model_of_the_index_after_both_were_replaced(shop: Shop, tmp_path: Path) -> None:
    from oclear.service import engine
    from retrieval.index import changes
    from retrieval.tables import CATALOGUE, read_table

    hub, index = tmp_path / "hub", tmp_path / "index"
    shutil.copytree(shop.model, hub)
    oclear.load(hub).index(shop.rows, folder=index)
    new = as_file([shop.rows[0] | {"text": "a red box"}], name="new", folder=tmp_path)
    running = engine.SearchEngine(Settings(str(hub), index, backend="torch", poll_seconds=60))
    try:
        config = json.loads((hub / "config.json").read_text()) | {"text_strength": 0.3}  # the query side is the same
        (hub / "config.json").write_text(json.dumps(config))
        oclear.load(hub).index(shop.rows, folder=index)
        assert running.refresh()

        def put(encoder: Any) -> dict[str, Any]:
            return changes.upsert(encoder, index, read_table(new, CATALOGUE))

        assert running.change(put, embeds=True)["replaced"] == 1
    finally:
        running.close()


def until(true: Any, seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_changes_that_wait_leave_threads_for_searches(shop: Shop, tmp_path: Path) -> None:
    from oclear.service import engine

    index = new_index(shop, tmp_path / "index")
    running = engine.SearchEngine(Settings(str(shop.model), index, backend="torch", poll_seconds=60))
    go = threading.Event()

    def slow(_: Any) -> dict[str, Any]:
        go.wait(20)
        return {}

    try:
        with ThreadPoolExecutor(engine.WAITING_CHANGES) as pool:
            waiting = [pool.submit(running.change, slow, embeds=False) for _ in range(engine.WAITING_CHANGES)]
            until(lambda: running.waiting_changes == engine.WAITING_CHANGES)
            with pytest.raises(TooManyWaiting, match="8 changes are waiting"):
                running.change(slow, embeds=False)
            go.set()
            assert [one.result(20) for one in waiting] == [{}] * engine.WAITING_CHANGES
    finally:
        running.close()


def test_without_write_keys_nothing_can_be_changed(shop: Shop, tmp_path: Path) -> None:
    index = new_index(shop, tmp_path / "index")
    with serving(shop, index, OCLEAR_WRITE_KEYS="") as (client, _):
        refused = client.post("/documents/delete", json={"doc_ids": ["d/1"]}, headers={"X-API-Key": "anything"})
        assert refused.status_code == 403
        assert "OCLEAR_WRITE_KEYS" in refused.json()["error"]["message"]


def test_onnx_answers_as_torch_does(shop: Shop, tmp_path: Path) -> None:
    exported = Shop(tmp_path / "hub", shop.rows)
    shutil.copytree(shop.model, exported.model)
    export(exported.model)
    index = new_index(exported, tmp_path / "index")
    picture = png(drawing("green", "bar"))
    answers = []
    for backend in ("auto", "torch"):
        with serving(exported, index, "--backend", backend, OCLEAR_WRITE_KEYS=KEY) as (client, _):
            found = client.post("/search", files={"image": picture}, data={"k": "4"}).json()["answers"]
            answers.append([(one["doc_id"], round(one["score"], 4)) for one in found])
            new = {"documents": [{"doc_id": f"n-{backend}", "text": "a red box", "price": 0.0, "brand": "z"}]}
            assert client.put("/documents", json=new, headers={"X-API-Key": KEY}).json()["added"] == 1
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--index", "nothing"], "no current.json"),
        (["--model", "nothing"], "nothing"),
        (["--batch", "0"], "--batch is at least 1"),
        (["--backend", "onnx"], "onnx"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_starts(
    shop: Shop, service: Any, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from oclear.service.command import main

    flags = ["--model", str(shop.model), "--index", str(service[1]), "--port", "0", *words]
    assert main(flags) == 2
    assert reason in capsys.readouterr().err


def test_a_short_key_is_refused() -> None:
    assert keys_of({"OCLEAR_API_KEYS": " long-enough , another-one,"}) == (("long-enough", "another-one"), ())
    with pytest.raises(ValueError, match="fewer than 8 characters"):
        keys_of({"OCLEAR_WRITE_KEYS": "short"})


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,0,1.1,1", "0.5,0,0.5,1", "nan,0,1,1", "-0.1,0,1,1"])
def test_boxes_without_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="box is"):
        box_of(text)


def test_batches_grow_with_what_waits_and_errors_reach_their_callers() -> None:
    go, sizes = threading.Event(), []

    def compute(jobs: Any) -> list[Any]:
        go.wait()
        sizes.append(len(jobs))
        if "all" in jobs:
            raise RuntimeError("all fail")
        return [ValueError("this one") if job == "bad" else job * 2 for job in jobs]

    batcher: Batcher[Any, Any] = Batcher(compute, batch=4, waiting=6)
    first = batcher.submit("a")
    while batcher.waiting:
        time.sleep(0.01)
    others = [batcher.submit(job) for job in ("b", "bad", "c", "d", "all", "e")]
    with pytest.raises(TooManyWaiting, match="6 searches are waiting"):
        batcher.submit("f")
    assert others[2].cancel()
    go.set()
    assert first.result(5) == "aa"
    assert [others[0].result(5), others[3].result(5)] == ["bb", "dd"]
    with pytest.raises(ValueError, match="this one"):
        others[1].result(5)
    for one in others[4:]:
        with pytest.raises(RuntimeError, match="all fail"):
            one.result(5)
    batcher.close()
    assert sizes == [1, 3, 2]  # of the four that were taken together, one had been cancelled
    with pytest.raises(TooManyWaiting, match="shutting down"):
        batcher.submit("g")


def test_requests_that_run_are_finished_at_the_end(shop: Shop, tmp_path: Path) -> None:
    index = new_index(shop, tmp_path / "index")
    picture = png(drawing("red", "box"))
    with serving(shop, index) as (client, process):
        with ThreadPoolExecutor(12) as pool:
            running = [pool.submit(client.post, "/search", files={"image": picture}) for _ in range(12)]
            time.sleep(0.05)
            process.terminate()
            statuses: list[Any] = []
            for one in running:
                try:
                    statuses.append(one.result(30).status_code)
                except Exception as error:  # noqa: BLE001 - a connection that was never taken is refused
                    statuses.append(type(error).__name__)
        assert 200 in statuses
        assert set(statuses) <= {200, "ConnectError", "RemoteProtocolError", "ReadError"}, statuses
    assert json.dumps(log_lines(process)).count('"status": 200') == statuses.count(200)
