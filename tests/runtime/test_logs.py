"""Messages of our packages reach the terminal once, without prefix."""

import io
import logging
from collections.abc import Iterator

import pytest

from runtime import logs


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in logs.PACKAGES]
    before = [(logger.handlers, logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


def test_messages_are_plain_lines_and_are_not_repeated_after_a_second_call() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure(stream=first)
    logs.configure(stream=second)
    logging.getLogger("retrieval.index").info("12 documents")
    logging.getLogger("retrieval.index").debug("not shown")
    logging.getLogger("somebody.else").info("not ours")
    assert (first.getvalue(), second.getvalue()) == ("", "12 documents\n")


def test_the_default_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("train").warning("careful")
    assert capsys.readouterr() == ("", "careful\n")
