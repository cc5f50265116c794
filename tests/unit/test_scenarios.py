"""Every scenario of `tests/SCENARIOS.md` names tests that exist."""

from __future__ import annotations

import ast
import re
from itertools import takewhile

import pytest

from tests.support.host import REPOSITORY

# Of an engine that does not exist here.
WITHOUT = {16}
LINES = (REPOSITORY / "tests/SCENARIOS.md").read_text().splitlines()
NUMBERED = re.compile(r"(\d+)\. ")
TEST = re.compile(r" +- `(\S+)::(\S+)`")


def numbers() -> list[int]:
    found = [NUMBERED.match(line) for line in LINES]
    return [int(each[1]) for each in found if each]


def played_by(number: int) -> list[tuple[str, str]]:
    """Return file and function of each test that plays scenario *number*."""
    first = next(at for at, line in enumerate(LINES) if line.startswith(f"{number}. "))
    lines = takewhile(TEST.match, LINES[first + 1 :])
    return [(each[1], each[2]) for each in map(TEST.match, lines) if each]


def test_all_are_there_once() -> None:
    assert numbers() == sorted(set(range(1, 31)) - WITHOUT)


@pytest.mark.parametrize("number", numbers())
def test_its_tests_exist(number: int) -> None:
    named = played_by(number)
    assert named
    for path, name in named:
        tree = ast.parse((REPOSITORY / "tests" / path).read_text())
        there = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
        assert name in there, f"{path}::{name}"
