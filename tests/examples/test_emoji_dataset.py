"""The emoji data set from drawings to tables, on synthetic and on real drawings."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.emoji import packages
from examples.emoji.__main__ import main
from examples.emoji.dataset import Settings, build
from examples.emoji.drawings import Drawing, listed_drawings, load_drawings
from examples.emoji.packages import STYLES, default_cache, install_packages, styles_of
from examples.emoji.renderings import Shot, event_picture
from examples.emoji.vocabulary import LANGUAGES, WORD, is_label_word, read_categories
from tests.support.images import encode

CATEGORIES = 80
EVENTS = 400
LEAKS = {"category", "style", "text_source", "twins"}


def code(number: int) -> str:
    return f"{0x1F400 + number:x}"


def random_svg(number: int, style: str) -> str:
    """A few shapes keyed by category and style; categories 4 and 5 are twins in noto."""
    draw = random.Random(f"{5 if number == 4 and style == 'noto' else number} {style}")
    shapes = []
    for _ in range(4):
        x, y, size = draw.uniform(6, 30), draw.uniform(6, 30), draw.uniform(3, 9)
        shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="#{draw.randrange(4096):03x}"/>')
    return "".join(shapes)


def random_webp(number: int) -> bytes:
    draw = random.Random(f"{number} webp")
    image = Image.new("RGBA", (160, 140))
    for _ in range(4):
        x, y = draw.randrange(100), draw.randrange(80)
        image.paste(tuple(draw.randrange(256) for _ in range(3)), (x, y, x + 40, y + 40))
    return encode(image, "WEBP", lossless=True)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_packages(folder: Path) -> Path:
    """Write node_modules with all styles and the words: 80 base emoji in 11 subgroups of 3 groups."""
    for style in STYLES:
        write_json(folder / style.package / "package.json", {"version": "1.0.0"})
        if style.name == "fluent-3d":
            (folder / style.package / "assets").mkdir()
            for number in range(0, CATEGORIES, 2):
                (folder / style.package / "assets" / f"{code(number)}-fe0f.webp").write_bytes(random_webp(number))
            continue
        icons = {f"icon-{number}": {"body": random_svg(number, style.name)} for number in range(CATEGORIES)}
        aliases = {"other-name": {"parent": "icon-0"}}
        icons["icon-79"]["body"] = "<g/>" if style.name == "noto" else icons["icon-79"]["body"]
        write_json(
            folder / style.package / "icons.json", {"icons": icons, "aliases": aliases, "width": 36, "height": 36}
        )
        chars = {code(number): f"icon-{number}" if number else "other-name" for number in range(CATEGORIES)}
        if style.role == "extra":
            chars = {}  # as the published packages of the retired styles have it
        write_json(folder / style.package / "chars.json", chars)
    write_words(folder / "emojibase-data")
    return folder


def write_words(folder: Path) -> None:
    write_json(folder / "package.json", {"version": "1.0.0"})
    write_json(folder / "meta/groups.json", {"subgroups": {str(n): f"shelf-{n}" for n in range(20)}})
    write_json(folder / "en/shortcodes/emojibase.json", {code(n).upper(): f"name{n}_thing" for n in range(CATEGORIES)})
    for language in ("en", *LANGUAGES):
        entries = []
        for number in range(CATEGORIES):
            tags = [f"{language}{number}", f"name{number}s", f"wort{number % 7}{language}"]
            where = {"group": (0, 1, 3)[number // 32], "subgroup": number // 8 if number < 79 else 15}
            entries.append({"label": f"name{number} thing", "hexcode": code(number).upper(), "tags": tags, **where})
        entries.append({"label": "light skin tone", "hexcode": "1F3FB", "group": 2, "subgroup": 16})
        entries.append({"label": "regional indicator A", "hexcode": "1F1E6"})
        write_json(folder / language / "data.json", entries)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_packages(folder / "node_modules")
    assert main(words(folder, "hard")) == 0
    return folder


def words(folder: Path, name: str, *more: str) -> list[str]:
    paths = ["--out", str(folder / name), "--cache", str(folder / "cache"), "--packages", str(folder / "node_modules")]
    return [*paths, "--events", str(EVENTS), *more]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small part of the real drawings; npm installs them into the user's cache at the first call."""
    try:
        modules = install_packages(default_cache())
    except ValueError as error:
        pytest.skip(f"the emoji packages cannot be installed here: {error}")
    out = tmp_path_factory.mktemp("real") / "emoji"
    settings = Settings(limit_categories=60, events=EVENTS)
    build(settings, out, node_modules=modules, cache=tmp_path_factory.mktemp("cache"), workers=1)
    return out


@pytest.fixture(params=["synthetic", "real"])
def data(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder / "hard" if request.param == "synthetic" else folder


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(data / f"{name}.parquet").to_pylist()


def ids(data: Path, name: str, column: str) -> set[str]:
    return {row[column] for row in rows(data, name)}


def truth(data: Path, name: str, key: str, value: str) -> dict[str, Any]:
    return {row[key]: row[value] for row in rows(data, f"truth/{name}")}


def test_no_validation_or_test_category_is_in_a_training_table(data: Path) -> None:
    split = truth(data, "catalogue", "doc_id", "split")
    category = truth(data, "catalogue", "doc_id", "category")
    of_query = truth(data, "queries", "query_id", "category")
    trained = {category[doc_id] for doc_id, name in split.items() if name == "train"}
    unseen = set(category.values()) - trained
    assert unseen
    assert ids(data, "train_catalogue", "doc_id") == {doc_id for doc_id, name in split.items() if name == "train"}
    assert {category[doc_id] for doc_id in ids(data, "behaviour", "doc_id")} <= trained
    assert {of_query[query] for query in ids(data, "queries", "query_id")} <= trained
    assert ids(data, "behaviour", "query_id") == ids(data, "queries", "query_id")
    assert {of_query[query] for query in ids(data, "seen_queries", "query_id")} <= trained
    for name in ("validation", "test"):
        asked = {of_query[query] for query in ids(data, f"{name}_queries", "query_id")}
        assert asked == {category[doc_id] for doc_id, where in split.items() if where == name}
    assert ids(data, "gallery_unseen", "doc_id") == {doc_id for doc_id, name in split.items() if name == "test"}


def test_queries_and_documents_have_different_styles(data: Path) -> None:
    asking = {style.name for style in styles_of("query")}
    assert set(truth(data, "queries", "query_id", "style").values()) == asking
    assert set(truth(data, "catalogue", "doc_id", "style").values()) == {style.name for style in styles_of("document")}


def test_qrels_have_exactly_the_documents_of_the_category(data: Path) -> None:
    category = truth(data, "catalogue", "doc_id", "category")
    of_query = truth(data, "queries", "query_id", "category")
    for name in ("seen", "validation", "test"):
        found: dict[str, set[str]] = {}
        for row in rows(data, f"{name}_qrels"):
            found.setdefault(row["query_id"], set()).add(row["doc_id"])
        assert set(found) == ids(data, f"{name}_queries", "query_id")
        for query, documents in found.items():
            assert documents == {doc_id for doc_id, key in category.items() if key == of_query[query]}


def test_held_out_drawing_is_not_in_the_click_log(data: Path) -> None:
    drawing = {row["query_id"]: (row["style"], row["category"]) for row in rows(data, "truth/queries")}
    held = {drawing[query] for query in ids(data, "seen_queries", "query_id")}
    assert held
    assert not held & {drawing[query] for query in ids(data, "queries", "query_id")}


def test_exact_dedupe_of_query_images_merges_under_one_percent(data: Path) -> None:
    encoded = [row["image"]["bytes"] for row in rows(data, "queries")]
    assert len(set(encoded)) == len(encoded) == EVENTS
    decoded = {np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).tobytes() for one in encoded}
    assert len(decoded) > 0.99 * len(encoded)


def test_only_the_truth_tables_contain_category_or_style(data: Path) -> None:
    for path in data.glob("*.parquet"):
        assert not LEAKS & set(pq.ParquetFile(path).schema_arrow.names), path.name
    assert all(row["image"]["path"] is None for name in ("catalogue", "queries") for row in rows(data, name))
    category = truth(data, "catalogue", "doc_id", "category")
    ordered = [category[row["doc_id"]] for row in rows(data, "catalogue")]
    for found in (ordered, [category[doc_id] for doc_id in sorted(category)]):
        neighbours = sum(first == second for first, second in zip(found, found[1:], strict=False))
        assert neighbours <= 5, "two documents of a category stand together no more often than by chance"
    times = [row["at"] for row in rows(data, "behaviour")]
    assert times != sorted(times)


def test_truth_of_clicks_agrees_with_the_categories(data: Path) -> None:
    category = truth(data, "catalogue", "doc_id", "category")
    of_query = truth(data, "queries", "query_id", "category")
    clicks = {(row["query_id"], row["doc_id"]): row["clicks"] for row in rows(data, "behaviour")}
    for row in rows(data, "truth/clicks"):
        assert row["right"] == (category[row["doc_id"]] == of_query[row["query_id"]])
        assert clicks.pop((row["query_id"], row["doc_id"])) == row["clicks"]
    assert not clicks


def test_twins_stay_in_one_split_and_are_listed_for_merging(synthetic: Path) -> None:
    data = synthetic / "hard"
    category = truth(data, "catalogue", "doc_id", "category")
    merged = {row["doc_id"]: row["same_as"] for row in rows(data, "merged")}
    assert {category[doc_id] for doc_id in merged} == {code(4), code(5)}
    assert len(merged) == 4
    assert set(merged.values()) == {min(merged)}
    split = truth(data, "catalogue", "category", "split")
    assert split[code(4)] == split[code(5)]


def test_empty_drawings_and_skin_tones_are_not_categories(synthetic: Path) -> None:
    found = set(truth(synthetic / "hard", "catalogue", "doc_id", "category").values())
    assert found == {code(number) for number in range(CATEGORIES - 1)}


def test_hard_text_has_no_label_word_and_no_shortcode(synthetic: Path) -> None:
    check_hard(synthetic / "hard", synthetic / "node_modules")


def test_hard_text_of_the_real_data_has_no_label_word_and_no_shortcode(real: Path) -> None:
    check_hard(real, install_packages(default_cache()))


def check_hard(data: Path, modules: Path) -> None:
    labels = {one.key: one.label for one in read_categories(modules)}
    category = truth(data, "catalogue", "doc_id", "category")
    source = truth(data, "catalogue", "doc_id", "text_source")
    assert "shortcodes" not in source.values()
    assert len(set(source.values())) == 4
    for row in rows(data, "catalogue"):
        assert (row["text"] == "") == (source[row["doc_id"]] == "nothing")
        assert not [word for word in WORD.findall(row["text"]) if is_label_word(word, labels[category[row["doc_id"]]])]


def test_documents_of_a_category_mostly_have_different_text_sources(data: Path) -> None:
    found: dict[str, list[str]] = {}
    for row in rows(data, "truth/catalogue"):
        found.setdefault(row["category"], []).append(row["text_source"])
    pairs = [sources for sources in found.values() if len(sources) == 2]
    assert sum(first != second for first, second in pairs) > 0.75 * len(pairs)


def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(synthetic: Path) -> None:
    assert main(words(synthetic, "again", "--workers", "2")) == 0
    files = sorted(path.relative_to(synthetic / "hard") for path in (synthetic / "hard").rglob("*") if path.is_file())
    assert len(files) == 17
    for name in files:
        assert (synthetic / "hard" / name).read_bytes() == (synthetic / "again" / name).read_bytes(), name


def test_another_seed_changes_ids_but_not_the_split(synthetic: Path) -> None:
    assert main(words(synthetic, "other", "--seed", "1", "--setting", "main", "--extra-styles")) == 0
    data, other = synthetic / "hard", synthetic / "other"
    assert not ids(data, "catalogue", "doc_id") & ids(other, "catalogue", "doc_id")
    assert truth(data, "catalogue", "category", "split") == truth(other, "catalogue", "category", "split")
    assert "shortcodes" in truth(other, "catalogue", "doc_id", "text_source").values()
    of_query = {row["query_id"]: row for row in rows(other, "truth/queries")}
    extra = [of_query[query] for query in ids(other, "extra_queries", "query_id")]
    assert extra
    assert {row["style"] for row in extra} == {"noto-v1", "emojione", "fxemoji"}
    split = truth(other, "catalogue", "category", "split")
    assert {split[row["category"]] for row in extra} == {"test"}


def test_extra_style_queries_are_of_unseen_categories(tmp_path: Path) -> None:
    try:
        modules = install_packages(default_cache(), extra_styles=True)
    except ValueError as error:
        pytest.skip(f"the emoji packages cannot be installed here: {error}")
    drawn = {style.name: len(listed_drawings(modules, style)) for style in styles_of("extra")}
    assert all(count >= 200 for count in drawn.values()), drawn
    settings = Settings(limit_categories=60, events=EVENTS, extra_styles=True)
    summary = build(settings, tmp_path / "emoji", node_modules=modules, cache=tmp_path / "cache", workers=1)
    assert summary["rows"]["extra_queries"] > 0
    asked = ids(tmp_path / "emoji", "extra_qrels", "doc_id")
    assert asked <= ids(tmp_path / "emoji", "gallery_unseen", "doc_id")


def test_summary_says_simulated_and_attribution_names_every_source(synthetic: Path) -> None:
    summary = json.loads((synthetic / "hard/emoji.json").read_text())
    assert summary["simulated"] is True
    assert summary["rows"]["queries"] == summary["settings"]["events"] == EVENTS
    assert abs(summary["wrong_click_share"] - 0.2) < 4 * (0.16 / summary["clicks"]) ** 0.5
    text = (synthetic / "hard/ATTRIBUTION.md").read_text()
    for style in STYLES:
        assert (f"| {style.package} | 1.0.0 | [{style.licence}]" in text) == (style.role != "extra")


def test_incomplete_cache_is_completed_without_rendering_again(synthetic: Path, tmp_path: Path) -> None:
    style = styles_of("document")[0]
    keys = [code(number) for number in range(10)]
    first = load_drawings(synthetic / "node_modules", style, keys, cache=tmp_path, workers=1)
    (part,) = tmp_path.rglob("*.parquet")
    before = part.stat().st_mtime_ns
    assert load_drawings(synthetic / "node_modules", style, keys, cache=tmp_path, workers=1) == first
    assert part.stat().st_mtime_ns == before
    assert isinstance(first[code(0)], Drawing)
    with Image.open(io.BytesIO(first[code(0)].png)) as image:
        assert (image.mode, image.size) == ("RGBA", (128, 128))


def test_renderings_of_a_drawing_differ_and_are_repeatable(synthetic: Path, tmp_path: Path) -> None:
    style = styles_of("query")[1]
    png = load_drawings(synthetic / "node_modules", style, [code(0)], cache=tmp_path, workers=1)[code(0)].png
    assert event_picture(Shot(png, 0, 1)) == event_picture(Shot(png, 0, 1))
    assert len({event_picture(Shot(png, 0, number)) for number in range(20)}) == 20
    assert event_picture(Shot(png, 0, 1)) != event_picture(Shot(png, 0, 1, attempt=1))


def test_lock_file_pins_versions_and_has_no_address() -> None:
    lock = (packages.HERE / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert "omit-lockfile-registry-resolved=true" in (packages.HERE / ".npmrc").read_text()
    wanted = json.loads((packages.HERE / "package.json").read_text())
    pinned = wanted["dependencies"] | wanted["optionalDependencies"]
    assert set(pinned) == {style.package for style in STYLES} | {packages.WORDS_PACKAGE}
    held = json.loads(lock)["packages"]
    for name, version in pinned.items():
        assert held[f"node_modules/{name}"]["version"] == version
        assert held[f"node_modules/{name}"]["integrity"].startswith("sha512-")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--events", "10"], "--events is 10"),
        (["--noise", "2"], "--noise is 2.0"),
        (["--limit-categories", "5"], "5 categories have query and document drawings"),
        (["--packages", "nowhere"], "lacks the package"),
    ],
)
def test_invalid_setting_gives_one_error_line_and_writes_nothing(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main([*words(synthetic, "x"), "--out", str(tmp_path / "x"), *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_folder_with_other_content_is_not_replaced(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main([*words(synthetic, "x"), "--out", str(tmp_path)]) == 2
    assert "not replaced" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").is_file()


def test_npm_of_the_wheel_is_used_without_npm_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    command = packages.npm_command()
    assert len(command) == 2
    assert all(Path(part).is_file() for part in command)
