"""The runner: documented commands, resumed folders, paired differences, one summary."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.catalogues import __main__ as command
from benchmarks.catalogues import runner
from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.cells import NamedCell
from benchmarks.catalogues.commands import Settings, Step, call, steps
from benchmarks.catalogues.domain import Domain
from benchmarks.catalogues.results import METRICS, differences, summarised
from benchmarks.catalogues.runner import Job, jobs, run_all
from tests.support.small_domain import small_domain

CELL = NamedCell("small", Cell(categories=14, test_categories=4, documents=(1, 2), clicks=2.0))
OTHER = NamedCell("other", replace(CELL.cell, noise=0.0), "small")
DOMAIN = small_domain(categories=20)
ALLOWED = {"--behaviour", "--queries", "--catalogue", "--out", "--data", "--recipe", "--seed", "--features", "--model"}
ALLOWED |= {"--threads", "--index", "--qrels", "--per-query"}


def domains(domain: str) -> Domain:
    assert domain == "icons"
    return DOMAIN


def write_scores(path: Path, table: Path, value: Callable[[int], float]) -> None:
    """What an evaluation leaves: metrics, and one row for each query."""
    ids = pq.read_table(table)["query_id"].to_pylist()
    rows = [{"query_id": one, **dict.fromkeys(METRICS, value(number))} for number, one in enumerate(ids)]
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    means = {name: sum(row[name] for row in rows) / len(rows) for name in METRICS}
    path.write_text(json.dumps(means | {"queries": len(rows)}))


def govern(data: Path, out: Path) -> None:
    """Governance without an error: every kept row has its true category."""
    rows = []
    for side, key, kept in (("query", "query_id", "queries"), ("document", "doc_id", "catalogue")):
        ids = set(pq.read_table(data / f"{kept}.parquet")[key].to_pylist())
        for row in pq.read_table(data / f"truth/{kept}.parquet").to_pylist():
            if row[key] in ids:
                rows.append({"sample_id": row[key], "side": side, "category_id": int(row["category"][1:])})
    (out / "samples").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "samples" / "part.parquet")
    (out / "ledger.json").write_text("{}")


class Commands:
    """Stands for `call`: writes what the commands write; `fail` names a step that fails."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fail = ""

    def __call__(self, step: Step, *, log: Path, threads: int) -> float:
        self.done.append(step.name)
        if step.name == self.fail:
            raise ValueError(f"step '{step.name}' failed (exit 1): out of memory")
        step.result.parent.mkdir(parents=True, exist_ok=True)
        folder = log.parent.parent
        if step.name == "govern":
            govern(folder / "data", step.result.parent)
        elif step.name.startswith("evaluate"):
            _, system, part = step.name.split()
            table = folder / "data" / f"{'test' if part == 'unseen' else part}_queries.parquet"
            write_scores(step.result, table, lambda number: float(number % 2 or system == "trained"))
        else:
            step.result.write_text("{}")
        return 2.0


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(runner, "call", found)
    return found


def test_commands_have_no_flag_beyond_paths_recipe_threads_and_seed(tmp_path: Path) -> None:
    for step in steps(tmp_path, Settings("auto", "frozen", 2), seed=3):
        flags = {word.split("=")[0] for word in step.command if word.startswith("--")}
        assert flags <= ALLOWED, step.name
        assert step.command[0] == sys.executable


def test_both_recipes_train_on_the_governed_data_with_the_seed(tmp_path: Path) -> None:
    by_name = {step.name: " ".join(step.command) for step in steps(tmp_path, Settings("auto", "frozen"), seed=3)}
    assert "--recipe auto --seed 3" in by_name["train trained"]
    assert "--recipe frozen --seed 3" in by_name["train frozen"]
    assert f"--catalogue={tmp_path / 'data' / 'catalogue.parquet'}" in by_name["govern"]
    assert "test_queries.parquet" in by_name["evaluate trained unseen"]
    assert "seen_queries.parquet" in by_name["evaluate frozen seen"]


def test_training_that_was_begun_goes_on_where_it_stopped(tmp_path: Path) -> None:
    [train] = [step for step in steps(tmp_path, Settings(), seed=0) if step.name == "train trained"]
    assert train.words() == train.command
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "train.jsonl").write_text("")
    assert train.words() == (*train.command, "--resume")


def test_a_run_writes_one_result_with_differences_and_governance(tmp_path: Path, commands: Commands) -> None:
    [job] = jobs([CELL], [0], tmp_path)
    assert run_all([job], domains, Settings(), workers=1) == []
    found = json.loads(job.result.read_text())
    assert found["cell"] == "small"
    assert found["recipe"] == "auto"
    assert found["systems"]["trained"]["unseen"]["recall_at_1"] == 1.0
    # The frozen features fail on every other query, the first one included.
    queries = found["data"]["rows"]["test_queries"]
    gain = found["difference"]["unseen"]["recall_at_1"]["difference"]
    assert gain == pytest.approx((queries + 1) // 2 / queries, abs=1e-4)
    assert found["governance"]["label_accuracy_after"] == found["governance"]["category_pair_f1"] == 1.0
    assert found["cpu_seconds"]["govern"] == 2.0
    assert len(found["queries"]["unseen"]["category"]) == queries


def test_a_finished_result_is_skipped_and_an_unfinished_folder_continued(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    found = jobs([CELL], [0], tmp_path)
    commands.fail = "index trained"
    [failure] = run_all(found, domains, Settings(), workers=1)
    assert failure == "small-s0: step 'index trained' failed (exit 1): out of memory"
    assert not found[0].result.exists()
    written = (found[0].folder / "data" / "cell.json").stat().st_mtime_ns
    commands.fail, commands.done = "", []
    assert run_all(found, domains, Settings(), workers=1) == []
    assert commands.done[0] == "index trained"
    assert (found[0].folder / "data" / "cell.json").stat().st_mtime_ns == written
    commands.done = []
    assert run_all(found, domains, Settings(), workers=1) == []
    assert commands.done == []
    assert "1 of 1 results exist already" in capsys.readouterr().out


def test_cells_run_side_by_side_and_one_failure_does_not_stop_the_others(tmp_path: Path, commands: Commands) -> None:
    broken = NamedCell("broken", replace(CELL.cell, text="other"))
    bare = replace(DOMAIN, categories=[replace(one, other={}) for one in DOMAIN.categories])
    found = jobs([CELL, broken, OTHER], [0, 1], tmp_path)
    assert [job.name for job in found[:4]] == ["small-s0", "broken-s0", "other-s0", "small-s1"]
    failures = run_all(found, lambda domain: bare, Settings(), workers=3)
    assert len(failures) == 2
    assert all("no words in another language" in line for line in failures)
    assert {job.name for job in found if job.result.is_file()} == {"small-s0", "small-s1", "other-s0", "other-s1"}


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, commands: Commands) -> None:
    commands.fail = "govern"
    run_all(jobs([CELL], [0], tmp_path), domains, Settings(), workers=1)
    [failure] = run_all(jobs([CELL], [0], tmp_path), domains, Settings("tiny"), workers=1)
    assert "was begun with another recipe; remove it or give another --out" in failure


def test_the_difference_is_paired_and_seeds_are_pooled() -> None:
    def scores(trained: list[float], frozen: list[float]) -> dict[str, Any]:
        systems = {"trained": trained, "frozen": frozen}
        by_metric = {system: dict.fromkeys(METRICS, values) for system, values in systems.items()}
        return {"category": ["a", "a", "b"], **by_metric}

    one = differences([scores([1.0, 1.0, 0.0], [0.0, 0.0, 0.0])])["recall_at_1"]
    assert one["difference"] == pytest.approx(2 / 3, abs=1e-4)
    assert (one["low"], one["high"]) == (0.0, 1.0)
    two = differences([scores([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]), scores([0.0] * 3, [0.0] * 3)])["mrr_at_10"]
    assert two["difference"] == 0.5


def test_the_summary_holds_finished_cells_and_means_over_seeds(tmp_path: Path, commands: Commands) -> None:
    run_all(jobs([CELL], [0, 10], tmp_path), domains, Settings(), workers=1)
    found = command.summary([CELL, OTHER], tmp_path)
    assert found["simulated"]
    assert list(found["cells"]) == ["small"]
    row = found["cells"]["small"]
    assert row["seeds"] == [0, 10]
    assert row["settings"] == {name: value for name, value in CELL.cell.as_json().items() if name != "seed"}
    assert row["unseen"]["trained"]["recall_at_1"] == 1.0
    assert row["cpu_seconds"] == 18.0
    results = [json.loads((tmp_path / f"small-s{seed}.json").read_text()) for seed in (0, 10)]
    queries = sum(len(one["queries"]["seen"]["category"]) for one in results)
    assert summarised(results)["seen"]["queries"] == queries


def test_a_failed_command_is_reported_with_the_end_of_its_output(tmp_path: Path) -> None:
    step = Step("break", tmp_path / "none", (sys.executable, "-c", "import sys; print('the cause'); sys.exit(3)"))
    with pytest.raises(ValueError, match=r"(?s)step 'break' failed \(exit 3\): .*the cause"):
        call(step, log=tmp_path / "logs" / "break.log", threads=1)
    seen = "import os; assert os.environ['OCLEAR_THREADS'] == os.environ['OMP_NUM_THREADS'] == '2'"
    assert call(replace(step, command=(sys.executable, "-c", seen)), log=tmp_path / "ok.log", threads=2) >= 0


def test_data_only_writes_tables_and_runs_nothing(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "chosen", lambda names: [CELL])
    monkeypatch.setattr(command, "Domains", lambda workers: domains)
    assert command.main(["--data-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "small-s0" / "data" / "behaviour.parquet").is_file()
    assert "small-s0: " in capsys.readouterr().out
    assert commands.done == []
    assert command.main(["--out", str(tmp_path), "--json", str(tmp_path / "summary.json")]) == 0
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["command"].startswith("python -m benchmarks.catalogues --out ")
    assert list(written["cells"]) == ["small"]


def test_zero_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--workers", "0"]) == 2
    assert "give whole numbers above 0" in capsys.readouterr().err


def test_a_job_has_its_own_seed_of_data(tmp_path: Path) -> None:
    assert Job(CELL, 7, tmp_path).cell() == replace(CELL.cell, seed=7)
