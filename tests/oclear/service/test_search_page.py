"""The search page in a real browser: with the mouse, with the keyboard, on a telephone."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.oclear.service.conftest import Shop, new_index, serving
from tests.support.browser import BROWSER, Page, browser
from tests.support.tiny_retrieval import drawing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium on this machine (Debian: apt install chromium)"),
]
ANSWERS = "document.querySelectorAll('#answers li').length"
FIRST = "document.querySelector('#answers dd')?.textContent"
STATUS = "document.getElementById('status').textContent"


def test_a_person_searches_with_mouse_keyboard_and_telephone(shop: Shop, tmp_path: Path) -> None:
    index = new_index(shop, tmp_path / "index")
    both = Image.new("RGB", (74, 33), "white")
    both.paste(drawing("red", "box"), (0, 0))
    both.paste(drawing("blue", "ring"), (37, 0))
    both = both.resize((740, 330))
    both.save(tmp_path / "both.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    key = "key-of-a-reader"
    with (
        serving(shop, index, OCLEAR_API_KEYS=key) as (client, _),
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"{client.base_url}")
        assert not page.value("document.getElementById('canvas').checkVisibility()")
        assert page.value("document.getElementById('go').disabled")
        assert "price" not in page.value("document.body.innerText"), "told to those who have a key alone"
        page.choose_file("#file", tmp_path / "no.png")
        page.wait_for(f"{STATUS}.includes('no picture that the browser can show')")
        page.choose_file("#file", tmp_path / "both.png")
        page.wait_for("!document.getElementById('go').disabled")

        page.value("document.getElementById('go').click()")
        page.wait_for(f"{STATUS}.includes('a key of OCLEAR_API_KEYS is needed')")
        page.value("document.getElementById('key').focus()")
        page.type(key)
        page.press("Enter", text="\r")  # from any field
        page.wait_for(f"{ANSWERS} === 12")
        assert "12 answers of 28 documents" in page.value(STATUS)
        assert "Columns: doc_id, text, leaf, price, brand." in page.value("document.body.innerText")

        search_with_a_box(page, client, tmp_path / "both.png", key)
        search_by_keyboard(page)
        search_on_a_telephone(page, f"{client.base_url}", tmp_path / "both.png")
        refused = [text for text in page.errors if "400" not in text and "401" not in text and "favicon" not in text]
        assert refused == []


def search_with_a_box(page: Page, client: Any, picture: Path, key: str) -> None:
    frame = page.value("JSON.stringify(document.getElementById('canvas').getBoundingClientRect())")
    place = json.loads(frame)
    at = lambda x, y: (place["x"] + x * place["width"], place["y"] + y * place["height"])  # noqa: E731
    page.value("document.getElementById('answers').replaceChildren()")
    page.drag(at(0.52, 0.02), at(0.99, 0.98))
    page.wait_for(f"{ANSWERS} === 12")  # a box searches by itself
    sides = [page.value(f"Number(document.getElementById('{name}').value)") for name in ("left", "top", "right")]
    assert sides == [pytest.approx(52, abs=1), pytest.approx(2, abs=1), pytest.approx(99, abs=1)]
    headers = {"X-API-Key": key}
    data = {"k": "12", "box": "0.52,0.02,0.99,0.98"}
    found = client.post("/search", files={"image": picture.read_bytes()}, data=data, headers=headers)
    assert page.value(FIRST) == found.json()["answers"][0]["doc_id"]


def search_by_keyboard(page: Page) -> None:
    # The same by keyboard: the box in numbers, then a condition, and Enter.
    page.value("document.querySelector('#sides').open = true; document.getElementById('left').focus()")
    page.value("document.getElementById('left').select()")
    page.type("0")
    page.press("Tab")
    page.wait_for("Math.abs(box[0]) < 0.001")
    page.value("document.getElementById('where').focus()")
    page.type("price < 3")
    page.press("Enter", text="\r")
    page.wait_for(f"{ANSWERS} === 3")
    page.type(" and nothing = 1")
    page.press("Enter", text="\r")
    page.wait_for(f"{STATUS}.includes(\"there is no column 'nothing'\")")
    page.value("document.getElementById('where').value = ''; document.getElementById('group').value = 'brand'")
    page.value("document.getElementById('go').click()")
    page.wait_for(f"{ANSWERS} === 2")
    assert "<b>y</b>" in page.value("document.getElementById('answers').innerText")  # shown as text, not as HTML
    assert page.value("document.querySelectorAll('#answers dd b').length") == 0

    assert page.value("document.querySelector('.shown canvas').hidden")
    page.value("document.getElementById('looked').click()")
    assert not page.value("document.querySelector('.shown canvas').hidden")
    tabbed = []
    page.value("document.activeElement.blur()")
    for _ in range(16):
        page.press("Tab")
        tabbed.append(page.value("document.activeElement.id"))
    assert {"file", "whole", "left", "where", "k", "group", "looked", "key", "go"} <= set(tabbed)


def search_on_a_telephone(page: Page, address: str, picture: Path) -> None:
    page.open(address, width=360, height=740)
    assert page.value("document.documentElement.scrollWidth") <= 360
    page.choose_file("#file", picture)
    page.wait_for("!document.getElementById('go').disabled")
    page.value("document.getElementById('go').click()")  # the key is still there
    page.wait_for(f"{ANSWERS} === 12")
    assert page.value("document.documentElement.scrollWidth") <= 360
