"""Load `oclear serve` with clients that search, some of them malformed; compare with the encoder's own rate.

The service runs as a process with a real model; the vectors of its documents are SYNTHETIC, its queries are pictures of
noise as PNG files. The encoder's rate is that of the same model and backend in batches, without decoding, before and
after the load.
"""

import http.client
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

import oclear
from benchmarks import result_file
from benchmarks.live_index import documents_table, unit_rows
from oclear.encoding import EncodingModel
from retrieval.encoder import fingerprint
from retrieval.index import EXACT_BELOW, vector_search
from retrieval.index.folder import save_index
from retrieval.index.store import Index

PICTURES, SIDE, BATCH, BOUNDARY = 64, 160, 32, "load"
RATE_SECONDS = 8.0


def build_index(folder: Path, width: int, model: str, documents: int, seed: int) -> None:
    """An index of random vectors that says it belongs to the model."""
    vectors = unit_rows(np.random.default_rng(seed).standard_normal((documents, width), dtype=np.float32))
    searcher = vector_search.build(vectors)
    names = [f"d{row:07d}" for row in range(documents)]
    blank = pa.nulls(documents, pa.binary())
    table = documents_table(names).append_column("leaf", pa.nulls(documents, pa.string()))
    table = table.append_column("thumbnail", blank).append_column("attention", blank)
    info = {"model": fingerprint(Path(model)), "kind": searcher.kind, "width": width, "exact_below": EXACT_BELOW}
    info |= {"recall_at_10_against_exact": searcher.recall_at_10, "calibration": None, "skipped": [], "imputed": 0}
    prices = pa.table({"price": np.random.default_rng(seed).random(documents)})
    save_index(Index(searcher, table, info | {"grid": [1, 1]}, prices), folder)


def noise_pictures(seed: int) -> list[bytes]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(PICTURES):
        small = Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((SIDE, SIDE)).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def form(image: bytes, **fields: str) -> bytes:
    """The body of a form."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'
        for key, text in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="q"\r\n\r\n'
    return "".join(parts).encode() + head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()


def malformed(pictures: list[bytes]) -> list[bytes]:
    """Bodies that must be refused."""
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    good = pictures[0]
    return [
        b"",
        form(b""),
        form(b"hello"),
        form(bytes(4000)),
        form(good[:200]),
        form(good[:30]),
        form(bomb.getvalue()),
        form(good, k="0"),
        form(good, k="ten"),
        form(good, where="1=1; drop table documents"),
        form(good, where="read_text('/etc/passwd') = 'x'"),
        form(good, where="nothing < 3"),
        form(good, where="(" * 900 + "1" + ")" * 900),
        form(good, box="0,0,2,1"),
        form(good, group_by="nothing"),
        form(good)[:-20],
    ]


def encoder_rate(model: EncodingModel, pictures: list[bytes]) -> float:
    """Pictures a second in batches, decoding not counted."""
    decoded = [Image.open(io.BytesIO(content)).convert("RGB") for content in pictures[:BATCH]]
    model.embed_queries(decoded)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < RATE_SECONDS:
        model.embed_queries(decoded)
        done += len(decoded)
    return done / (time.perf_counter() - start)


class Load:
    """Clients that ask one search after another until a moment."""

    def __init__(self, port: int, pictures: list[bytes], share_malformed: float) -> None:
        self.port, self.share = port, share_malformed
        self.good = [form(picture, k="10") for picture in pictures]
        self.good += [form(picture, k="10", where="price < 0.5") for picture in pictures[: PICTURES // 8]]
        self.bad = malformed(pictures)
        self.milliseconds: list[float] = []
        self.statuses = Counter[str]()
        self.lock = threading.Lock()

    def client(self, number: int, end: float) -> None:
        generator = random.Random(number)  # noqa: S311 - a benchmark
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while time.time() < end:
            bad = generator.random() < self.share
            body = generator.choice(self.bad if bad else self.good)
            start = time.perf_counter()
            try:
                connection.request("POST", "/search", body, headers)
                answer = connection.getresponse()
                answer.read()
                status = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            with self.lock:
                self.statuses[f"{'malformed' if bad else 'good'} {status}"] += 1
                if not bad:
                    self.milliseconds.append(1000 * (time.perf_counter() - start))
        connection.close()

    def run(self, clients: int, seconds: float) -> float:
        """Good searches a second."""
        before, start = len(self.milliseconds), time.time()
        threads = [threading.Thread(target=self.client, args=(n, start + seconds)) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (len(self.milliseconds) - before) / (time.time() - start)


def measured(options: Any, folder: Path) -> dict[str, Any]:
    """All figures."""
    backend = "onnx" if (Path(options.model) / "onnx" / "query.onnx").is_file() else "torch"
    model = (
        oclear.load(options.model, backend="onnx") if backend == "onnx" else oclear.load(options.model, device="cpu")
    )
    build_index(folder, model.width, options.model, options.documents, options.seed)
    pictures = noise_pictures(options.seed)
    rates = [encoder_rate(model, pictures)]
    words = [sys.executable, "-m", "oclear", "serve", "--model", options.model, "--index", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        assert service.stdout is not None
        port = int(service.stdout.readline().split()[0].rsplit(":", 1)[1])
        load, process = Load(port, pictures, options.malformed), psutil.Process(service.pid)
        load.run(options.clients, 5.0)
        load.milliseconds.clear()
        load.statuses.clear()
        memory = [process.memory_info().rss]
        rate = load.run(options.clients, options.seconds / 2)
        memory.append(process.memory_info().rss)
        rate = (rate + load.run(options.clients, options.seconds / 2)) / 2
        memory.append(process.memory_info().rss)
        service.send_signal(signal.SIGTERM)
    rates.append(encoder_rate(model, pictures))
    middle, high = np.percentile(load.milliseconds, (50, 99))
    own = sum(rates) / 2
    return {
        "backend": backend,
        "documents": options.documents,
        "clients": options.clients,
        "seconds": options.seconds,
        "statuses": dict(sorted(load.statuses.items())),
        "searches_per_second": round(rate, 1),
        "encoder_pictures_per_second": round(own, 1),
        "share_of_the_encoder": round(rate / own, 3),
        "p50_ms": round(float(middle), 1),
        "p99_ms": round(float(high), 1),
        "p99_over_p50": round(float(high / middle), 2),
        "megabytes": [round(size / 1e6) for size in memory],
        "memory_growth_second_half": round(memory[2] / memory[1] - 1, 4),
    }


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "service_load", str(__doc__), example="python -m benchmarks.service_load --model runs/demo/hub --seconds 600"
    )
    parser.add_argument("--model", required=True, help="published folder; with ONNX where `oclear export` wrote it")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--malformed", type=float, default=0.1, help="share of the requests (default: %(default)s)")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        found = measured(options, Path(place) / "index")
    bad = {name: count for name, count in found["statuses"].items() if " 5" in name or not name[-3:].isdigit()}
    result_file.write_result("service_load", found, options.json, words)
    if bad:
        print(f"not answered as they should be: {json.dumps(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
