"""Prints advice on long files and functions after every test run."""

import pytest

from tests.support.length_advice import MAX_FILE_LINES, MAX_FUNCTION_LINES, advice


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Length is a reason to look, not a failure: a function that reads from top to bottom may be long."""
    if found := advice():
        limits = f"over {MAX_FUNCTION_LINES} lines a function, {MAX_FILE_LINES} a file"
        terminalreporter.write_sep("-", f"advice: {len(found)} long parts ({limits})")
        for line in found:
            terminalreporter.write_line(line)
