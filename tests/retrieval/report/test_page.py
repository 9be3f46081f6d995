"""The report page: its content, no network access, and its filter in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from retrieval.report.answer_cards import Shown, card
from retrieval.report.charts import Bar, horizontal
from retrieval.report.metric_tables import governance_panels, selection_panel
from retrieval.report.page import JudgedAnswers, choose
from tests.support.tiny_retrieval import Evaluated, TinyTask, call

BROWSER = shutil.which("chromium") or ""
# The proxy is a closed port: whatever the browser itself would like to fetch, it cannot leave this machine.
FLAGS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    *["--virtual-time-budget=4000", "--proxy-server=127.0.0.1:9"],
]


@pytest.fixture(scope="session")
def report(task: TinyTask, built: Path, evaluated: Evaluated) -> Path:
    """A report with every optional part."""
    folder = task.folder
    metrics, table = evaluated
    governance = {"label_accuracy_before": 0.8, "label_accuracy_after": 0.96, "kept_share": 0.9}
    whole = {"unseen": {"full_gallery": metrics}, "seen": {"full_gallery": metrics}, "governance": governance}
    whole |= {"baselines": {"text_removed": metrics}, "environment": metrics["environment"]}
    (folder / "all.json").write_text(json.dumps(whole))
    reasons = {"reasons": {"weak_edge": 7, "<b>odd</b>": 1}}
    stage = {"stage": "click_rates", "table": "edges", "rows_in": 40, "kept": 32, "dropped": 8} | reasons
    (folder / "ledger.json").write_text(json.dumps({"stages": [stage]}))
    (folder / "governed").mkdir()
    sizes = pa.table({"size": [40, 9, 8, 2, 2], "band": ["head", "body", "body", "tail", "tail"]})
    pa.parquet.write_table(sizes, folder / "governed" / "categories.parquet")
    words = ["--model", task.model, "--index", built, "--queries", task.table("queries"), "--qrels"]
    words += [task.table("qrels"), "--per-query", table, "--metrics", folder / "all.json"]
    words += ["--ledger", folder / "ledger.json", "--governed", folder / "governed", "--shown", "20"]
    row = {"recall_at_1": 0.1, "recall_at_10": 0.3, "mrr_at_10": 0.2, "ndcg": 0.4, "low": -0.01, "high": 0.093}
    candidates = [
        {"candidate": name, **row, "difference": gain} for name, gain in (("frozen", 0.0), ("trained", 0.041))
    ]
    explanation = "Published: trained, <i>surely</i>."
    selection = {"published": "trained", "held_out_categories": 61} | {"explanation": explanation}
    (folder / "training.json").write_text(json.dumps({"selection": selection | {"candidates": candidates}}))
    words += ["--training", folder / "training.json"]
    assert call("page", *words, "--html", folder / "report.html") == 0
    return folder / "report.html"


def test_the_page_is_one_file_without_external_references(report: Path) -> None:
    text = report.read_text()
    assert len(text.encode()) < 5_000_000
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*", text) == []
    assert not re.search(r"(https?:)?//\w+\.\w+|@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_page_shows_queries_marks_metrics_and_governance(report: Path, evaluated: Evaluated) -> None:
    text = report.read_text()
    assert text.count('<article class="query"') == 20
    assert text.count('<li class="answer') == 200
    assert text.count("&#10003;</span>") == text.count('<li class="answer right"')
    assert f"{100 * evaluated[0]['recall_at_10']:.1f}" in text
    for words in (
        "Unseen categories, all documents",
        "Ablation: documents without text",
        "96.0%",
        "weak edge",
        "Where",
        "Published: trained, &lt;i&gt;surely&lt;/i&gt;.",
        "on 61 held-out categories",
        "<td>+4.1<small>-1.0 to +9.3</small></td>",
    ):
        assert words in text
    assert "<b>odd</b>" not in text


def test_a_second_round_of_governance_is_shown_beside_the_first() -> None:
    first = {"label_accuracy_before": 0.8, "label_accuracy_after": 0.96, "kept_share": 0.9, "category_pair_f1": 0.912}
    second = {"label_accuracy_after": 0.985, "kept_share": 0.93, "category_pair_f1": 0.934}
    alone = governance_panels(None, first, None)
    assert "second round" not in alone
    both = governance_panels(None, first | {"second_round": second}, None)
    for words in ("96.0%", "98.5%", "second round", "<td>0.912</td><td>0.934</td>", "<td>0.9</td><td>0.93</td>"):
        assert words in both


def test_a_run_that_judged_nothing_has_no_table_of_candidates() -> None:
    assert selection_panel(None) == selection_panel({}) == ""
    alone = selection_panel({"explanation": "Published: the frozen encoder.", "candidates": []})
    assert "the frozen encoder" in alone
    assert "<table>" not in alone


def test_text_from_a_table_is_escaped() -> None:
    document = {"text": "<script>alert(1)</script>", "thumbnail": None, "attention": None, "has_image": False}
    html = card(
        Shown("q", Image.new("RGB", (4, 4)), ["a"], [0.5], [False]), {"a": document | {"imputed": False}}, (1, 1)
    )
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_kinds_follow_from_the_answers() -> None:
    def kinds(right: Any) -> list[str]:
        return Shown("q", Image.new("RGB", (1, 1)), [], [], right).kinds

    assert kinds([True, False]) == ["right-at-1", "found"]
    assert kinds([False, True]) == ["wrong-at-1", "found"]
    assert kinds([False, False]) == ["wrong-at-1", "missed"]


def test_the_choice_of_queries_is_seeded_and_mixes_right_and_wrong() -> None:
    rows = [JudgedAnswers(f"q{place}", ["a", "b"], [1, 0], [place % 3 == 0, place % 3 == 1]) for place in range(90)]
    chosen = choose(rows, count=30, seed=1)
    assert [row.query_id for row in chosen] == [row.query_id for row in choose(rows[::-1], count=30, seed=1)]
    assert [row.query_id for row in chosen] != [row.query_id for row in choose(rows, count=30, seed=2)]
    assert sum(row.right[0] for row in chosen) == sum(row.right[1] for row in chosen) == 10
    assert len(choose(rows[:4], count=30, seed=1)) == 4


def test_the_longest_bar_fills_the_chart_and_labels_are_escaped() -> None:
    svg = horizontal([Bar("a<b", 4, "4"), Bar("half", 2, "2"), Bar("none", 0, "0")], title="t")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', svg)]
    assert widths[0] == 2 * widths[1] > 0 == widths[2]
    assert "a&lt;b" in svg


def browse(page: str, folder: Path) -> tuple[str, list[str]]:
    """(DOM after the scripts ran, addresses that the page asked for besides files and data)."""
    log = folder / "net.json"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    # Requests of the browser itself (updates, time) name no origin; those of a page name the page's.
    starts = [line for line in log.read_text().splitlines() if '"initiator":' in line and "not an origin" not in line]
    asked = [found[1] for line in starts if (found := re.search(r'"url":"([^"]*)"', line))]
    return done.stdout, [address for address in asked if not address.startswith(("file:", "data:"))]


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium on this machine (Debian: apt install chromium)")
def test_the_filter_works_in_a_browser_and_nothing_is_requested(report: Path, tmp_path: Path) -> None:
    dom, asked = browse(f"{report.as_uri()}#missed", tmp_path)
    missed = len(re.findall(r'data-kinds="[^"]*missed"', dom))
    hidden = len(re.findall(r'<article [^>]*hidden=""', dom))
    assert 0 < missed < 20
    assert hidden == 20 - missed
    assert f'data-shown="{missed}"' in dom
    assert f"{missed} of 20 queries" in dom
    assert re.search(r'data-kind="missed" aria-pressed="true"', dom)
    assert asked == []


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium on this machine (Debian: apt install chromium)")
def test_a_page_that_requests_something_would_be_noticed(report: Path, tmp_path: Path) -> None:
    outside = '<img src="https://example.invalid/x.png">'
    open_page, closed_page = tmp_path / "open.html", tmp_path / "closed.html"
    open_page.write_text(f"<html><body>{outside}</body></html>")
    closed_page.write_text(report.read_text().replace("<main>", f"<main>{outside}"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert browse(open_page.as_uri(), tmp_path / "a")[1] == ["https://example.invalid/x.png"]
    assert browse(closed_page.as_uri(), tmp_path / "b")[1] == []  # the page's own policy forbids it


def test_a_report_needs_no_optional_part(task: TinyTask, built: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    words = ["--model", task.model, "--index", built, "--queries", task.table("queries"), "--qrels"]
    words += [task.table("qrels"), "--per-query", evaluated[1], "--shown", "3", "--html", tmp_path / "r.html"]
    assert call("page", *words) == 0
    text = (tmp_path / "r.html").read_text()
    assert "These queries" in text
    assert "From click log" not in text


def test_a_per_query_table_of_another_index_is_rejected(
    task: TinyTask, built: Path, evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pa.parquet.read_table(evaluated[1]).to_pylist()
    rows[0]["doc_ids"][0] = "lost"
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    words = ["--index", built, "--queries", task.table("queries"), "--qrels", task.table("qrels"), "--per-query"]
    page = [
        "page",
        *words,
        tmp_path / "p.parquet",
        "--model",
        task.model,
        "--shown",
        "28",
        "--html",
        tmp_path / "r.html",
    ]
    assert call(*page) == 2
    assert "names document 'lost', which the index lacks" in capsys.readouterr().err
    assert call("picture", *words, task.table("queries"), "--out", tmp_path / "x.png") == 2
    assert "evaluate --per-query" in capsys.readouterr().err


def test_the_contact_sheet_is_a_small_picture_with_green_and_red_frames(
    task: TinyTask, built: Path, evaluated: Evaluated, tmp_path: Path
) -> None:
    words = ["--index", built, "--queries", task.table("queries"), "--qrels", task.table("qrels")]
    out = tmp_path / "answers.png"
    assert call("picture", *words, "--per-query", evaluated[1], "--rows", 4, "--out", out) == 0
    assert out.stat().st_size < 300_000
    picture = Image.open(out).convert("RGB")
    assert picture.height == 10 + 4 * 74
    colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0).astype(int)
    for frame in ((18, 128, 92), (201, 42, 75)):
        assert np.abs(colours - frame).max(axis=1).min() <= 8
