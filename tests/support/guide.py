"""What a guide prints: its sections, the files and commands in them, and their run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .host import REPOSITORY

_HEADING = re.compile(r"^#{2,} (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Two blanks before it: `#` in a command's own words has one.
_COMMENT = re.compile(r"\s{2,}# .*$")

# What runs a command; it is given all words of it.
Runner = Callable[[list[str]], object]


@dataclass(frozen=True, slots=True)
class Section:
    """The blocks between a heading and the next one."""

    blocks: tuple[tuple[str, str], ...]

    def files(self) -> list[str]:
        """Return the YAML files, in order."""
        return [text for language, text in self.blocks if language == "yaml"]

    def commands(self) -> list[list[list[str]]]:
        """Return the words of each command, for each block of commands."""
        return [
            [shlex.split(each) for each in _typed(text)]
            for language, text in self.blocks
            if language == "console"
        ]


def section(guide: str, heading: str) -> Section:
    """Return the section *heading* of the file *guide* in docs/guides."""
    text = Path(REPOSITORY, "docs/guides", guide).read_text("utf-8")
    parts = _HEADING.split(text)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))[heading]
    return Section(tuple(_BLOCK.findall(found)))


def run(commands: list[list[str]], runners: Mapping[str, Runner]) -> None:
    """Run *commands* in order, each by the runner of its first word."""
    for words in commands:
        runners[words[0]](words)


def _typed(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^# (.*)$", joined, re.MULTILINE)
    return [_COMMENT.sub("", line).strip() for line in lines]
