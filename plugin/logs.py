"""
Log lines: JSON for machines, a plain line for a terminal.

Fields are given with ``extra=fields(op=..., volume=...)``; each request ends in one
line that carries all of them.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

_KEY: Final = "remora_fields"


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return *values* in the form that ``extra=`` of a logging call takes."""
    return {_KEY: values}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as one line of JSON."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, _KEY, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """One readable line: time, level, event, then key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as one line of text."""
        values: dict[str, object] = getattr(record, _KEY, {})
        shown = "".join(f" {key}={value}" for key, value in values.items())
        line = (
            f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{shown}"
        )
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def set_up(log_format: str) -> None:
    """
    Send every log line of the process to standard output in *log_format*.

    The engine that runs a managed plugin takes standard error for errors.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(ConsoleFormatter() if console else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Its queue warnings and client disconnects are told by our own lines and metrics.
    logging.getLogger("waitress").setLevel(logging.ERROR)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(
        timespec="milliseconds"
    )
