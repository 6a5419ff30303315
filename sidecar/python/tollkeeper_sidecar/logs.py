"""Sets up the log: one JSON object a line on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog


class _Lines:
    """Writes lines to stderr; one that can't be written, to a full volume say, is dropped: it must stop nobody."""

    def write(self, text: str) -> None:
        """Write a piece of a line, or drop it."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Let what was written leave, or drop it."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure(level: str) -> None:
    """Log from `level` upwards. Meant to be called once, by the process's main."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lines())),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> Any:
    """Return a logger."""
    return structlog.get_logger(name)
