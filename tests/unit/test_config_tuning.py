"""The section [tuning]: what the daemon does every so often, for tests to change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from plugin.config import Config, Tuning, load
from plugin.errors import ConfigError


def read(directory: Path, text: str, environment: Mapping[str, str]) -> Config:
    path = directory / "remora.toml"
    path.write_text(text)
    return load(path, environment)


def test_the_intervals_of_tests_are_refused_to_everybody_else(tmp_path: Path) -> None:
    text = "[tuning]\nhold_s = 4"
    for environment in ({}, {"REMORA_TESTS": "0"}):
        with pytest.raises(ConfigError, match=r"\[tuning\] is for the tests"):
            read(tmp_path, text, environment)
    with pytest.raises(ConfigError, match=r"\[tuning\] is for the tests"):
        read(tmp_path, "", {"REMORA_TUNING_HOLD_S": "4"})
    tests = {"REMORA_TESTS": "1"}
    assert read(tmp_path, text, tests).tuning == Tuning(hold_s=4)
    assert read(tmp_path, "", {**tests, "REMORA_TUNING_HOLD_S": "4"}).tuning.hold_s == 4
    with pytest.raises(ConfigError, match="unknown key"):
        read(tmp_path, "[tuning]\nnothing_s = 4", tests)


def test_the_intervals_that_are_promised() -> None:
    """The guide's figures rest on them, whatever tests run with."""
    assert Config().tuning == Tuning(
        reconcile_interval_s=10.0,
        follow_interval_s=10.0,
        look_interval_s=60.0,
        hold_s=10.0,
    )
