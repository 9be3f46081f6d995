"""Number of threads: the variable, else the idle cores."""

import os

import psutil
import pytest

from runtime.threads import THREADS_VARIABLE, available_cores, busy_cores, free_threads, num_threads


@pytest.mark.parametrize(
    ("cores", "load", "processes", "threads"), [(2, 0.1, 1, 2), (2, 1.2, 1, 1), (8, 0.0, 3, 2), (1, 9.0, 1, 1)]
)
def test_threads_are_the_free_cores_of_each_process(cores: int, load: float, processes: int, threads: int) -> None:
    assert free_threads(cores=cores, load=load, processes=processes) == threads


def test_the_variable_overrides_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "7")
    assert num_threads(processes=2) == 7


@pytest.mark.parametrize("value", ["many", "0", "-1", "1.5", ""])
def test_a_value_that_is_no_positive_number_is_rejected(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, value)
    with pytest.raises(ValueError, match=f"OCLEAR_THREADS is '{value}'; give a whole number above 0"):
        num_threads()


def test_a_command_that_has_just_ended_does_not_count_as_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (3.0, 3.0, 3.0))
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    assert (available_cores(), busy_cores(), num_threads()) == (4, 0.0, 4)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 100.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    assert (busy_cores(), num_threads()) == (3.0, 1)
