"""Log lines: one a record, JSON for machines, text for people."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.logs import ConsoleFormatter, JsonFormatter, fields, set_up


def record(
    message: str, *args: object, error: BaseException | None = None, **values: object
) -> logging.LogRecord:
    return logging.getLogger("plugin.x").makeRecord(
        "plugin.x",
        logging.WARNING,
        "file.py",
        1,
        message,
        args,
        (type(error), error, error.__traceback__) if error else None,
        extra=fields(**values),
    )


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Return the root logger; afterwards it is as it was."""
    root = logging.getLogger()
    waitress = logging.getLogger("waitress")
    before = root.handlers[:], root.level, waitress.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    waitress.setLevel(before[2])


def test_json_has_time_level_event_and_fields() -> None:
    line = JsonFormatter().format(record("call %d", 1, op="Get", duration_ms=0.5))
    shown = json.loads(line)
    assert list(shown) == ["time", "level", "event", "op", "duration_ms"]
    assert (shown["level"], shown["event"]) == ("warning", "call 1")
    assert (shown["op"], shown["duration_ms"]) == ("Get", 0.5)
    age = datetime.now(UTC) - datetime.fromisoformat(shown["time"])
    assert abs(age.total_seconds()) < 60


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_json_is_one_line_whatever_it_says(message: str, value: str) -> None:
    line = JsonFormatter().format(record("%s", message, op=value))
    assert "\n" not in line
    assert "\r" not in line
    assert json.loads(line)["event"] == message
    assert json.loads(line)["op"] == value


def test_json_takes_what_json_does_not_know() -> None:
    line = JsonFormatter().format(record("x", path=os.devnull, error=None, kind=set))
    assert json.loads(line)["kind"] == "<class 'set'>"


def test_the_console_shows_a_line_of_text() -> None:
    line = ConsoleFormatter().format(record("trash emptied", volumes=3, code="ok"))
    time, rest = line.split(" ", 1)
    assert datetime.fromisoformat(time).tzinfo is not None
    assert rest == "warning trash emptied volumes=3 code=ok"


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_a_traceback_is_shown(formatter: logging.Formatter) -> None:
    with pytest.raises(ValueError, match="broken") as caught:
        raise ValueError("broken\nin two")
    shown = formatter.format(record("internal error", error=caught.value))
    if isinstance(formatter, JsonFormatter):
        assert "\n" not in shown
        shown = json.loads(shown)["traceback"]
    assert "Traceback (most recent call last):" in shown
    assert "ValueError: broken\nin two" in shown


class Output(io.StringIO):
    """A standard output that is, or is not, a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("log_format", "terminal", "is_json"),
    [
        ("json", True, True),
        ("json", False, True),
        ("console", True, False),
        ("console", False, False),
        ("auto", True, False),
        ("auto", False, True),
    ],
)
def test_set_up_chooses_by_format_and_terminal(
    root: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    log_format: str,
    terminal: bool,
    is_json: bool,
) -> None:
    output = Output(terminal=terminal)
    monkeypatch.setattr(sys, "stdout", output)
    set_up(log_format)
    logging.getLogger("plugin.anything").info("hello", extra=fields(op="Get"))
    logging.getLogger("plugin.anything").debug("not shown")
    # waitress tells of every client that hangs up; our own lines say what matters.
    logging.getLogger("waitress").warning("not shown")
    [line] = output.getvalue().splitlines()
    assert line.startswith("{") == is_json
    assert "hello" in line


def test_set_up_twice_says_everything_once(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(terminal=False)
    monkeypatch.setattr(sys, "stdout", output)
    set_up("json")
    set_up("json")
    root.warning("once")
    assert len(output.getvalue().splitlines()) == 1
