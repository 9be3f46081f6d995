"""Logging of the commands: messages of our packages go to the terminal, one plain line each.

Library code only calls `logging.getLogger(__name__)`; a command calls `configure` once.
"""

import logging
import sys
from typing import TextIO

PACKAGES = ("oclear", "runtime", "data_governance", "train", "retrieval", "hub_cards", "benchmarks", "examples")
HANDLER = "oclear"


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the time of the message, not at that of the configuration."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(
    *, level: int = logging.INFO, stream: TextIO | None = None, formatter: logging.Formatter | None = None
) -> None:
    """Print log messages of our packages from `level` on, without prefix; other libraries are left as they are.

    Calling it again replaces the earlier settings.

    Args:
        stream: where messages go; None is standard error.
        formatter: of a message; None prints it alone.
    """
    handler = _ToStandardError() if stream is None else logging.StreamHandler(stream)
    handler.set_name(HANDLER)
    handler.setFormatter(formatter or logging.Formatter("%(message)s"))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [old for old in logger.handlers if old.get_name() != HANDLER]
        logger.addHandler(handler)
        logger.setLevel(level)
