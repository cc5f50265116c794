"""The `remora` command, called in this process against a node's daemon."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from plugin.cli.main import main
from tests.protocol.node import Node


@dataclass(frozen=True, slots=True)
class Done:
    """What one call of the command gave."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the decoded output; nothing else may have been printed."""
        assert self.err == "", self.err
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on standard error of a call that failed."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("remora: ")
        return self.err.removeprefix("remora: ").rstrip("\n")


Cli = Callable[..., Done]


def caller(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """
    Return a function that calls the command as a shell does.

    Its keyword arguments are the environment, but for `answer`, the standard input.
    """
    for name in ("DOCKER_HOST", "REMORA_CONTROL_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REMORA_CONFIG", str(node.config))

    def call(*arguments: str, answer: str = "", **environment: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["remora", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        code = 0
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            try:
                main()
            except SystemExit as exited:
                code = int(exited.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call
