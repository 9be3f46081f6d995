"""Fixtures: a tiny model with an index of a small shop, and the real service as a process on loopback."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import modeling_oclear
import oclear
from tests.support.images import encode
from tests.support.tiny_retrieval import COLOURS, ROOT, SHAPES, drawing, tiny_model


@dataclass
class Shop:
    """A published model and rows of a catalogue."""

    model: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("service")
    model, processor = tiny_model()
    modeling_oclear.publish(model, processor, folder / "hub")
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    rows = [
        {
            "doc_id": f"d/{place}",
            "image": encode(drawing(colour, shape, shift=1)),
            "text": f"a {colour} {shape}",
            "price": float(place),
            "brand": "o'x" if place % 2 else "<b>y</b>",
        }
        for place, (colour, shape) in enumerate(kinds)
    ]
    return Shop(folder / "hub", rows)


@contextmanager
def serving(shop: Shop, index: Path, *words: str, **environment: str) -> Iterator[tuple[httpx2.Client, Any]]:
    """(a client, the process) of a service; it must end cleanly."""
    flags = ["serve", "--model", str(shop.model), "--index", str(index), "--port", "0", "--threads", "1", *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "oclear", *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()[1]
        with httpx2.Client(base_url=line.split()[0], timeout=30) as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGTERM)
        _, process.log = process.communicate(timeout=60)  # type: ignore[attr-defined]
    assert process.returncode in (0, -signal.SIGTERM), process.log  # type: ignore[attr-defined]


def new_index(shop: Shop, folder: Path) -> Path:
    """An index of the shop in a folder."""
    oclear.load(shop.model).index(shop.rows, folder=folder)
    return folder


def log_lines(process: Any) -> list[dict[str, Any]]:
    """The structured lines of a service that has ended."""
    return [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
