"""A section of docs/guides/migrating.md: its files, its way there and its way back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from . import guides

PAGE: Final = "migrating.md"
_BEGINS: Final = "docker-compose down"

# What runs a command; it is given all words of it.
Runner = Callable[[list[str]], object]


def files(section: str, page: str = PAGE) -> list[str]:
    """Return the Compose files that a section has, in order."""
    blocks = (each for each in guides.blocks(page) if each.section == section)
    return [each.text for each in blocks if each.language == "yaml"]


def there_and_back(printed: guides.Printed) -> tuple[list[str], list[str]]:
    """Return the commands that lead to Remora, and those that lead back."""
    typed = [each.text for each in printed.rest()]
    begins = [number for number, each in enumerate(typed) if each == _BEGINS]
    back = begins[1] if len(begins) > 1 else len(typed)
    return typed[:back], typed[back:]


def back_of(section: str) -> list[str]:
    """Return the commands that lead back, of a section that others share."""
    return there_and_back(guides.Printed([guides.Claim("", PAGE, section)]))[1]


def run(commands: Iterable[str], runners: Mapping[str, Runner]) -> None:
    """Run *commands* in order, each by the runner of its first word."""
    for each in commands:
        words = shlex.split(each)
        runners[words[0]](words)
