"""
The commands that README.md and the guides show, and which test runs each of them.

A test says what it runs with `@pytest.mark.printed(PAGE, SECTION, *BEGINNINGS)`: all
commands of the section, or those that begin so. It gets them by the fixture `printed`,
as they are printed, and fails if it leaves one out. So a command that is new or has
changed is run, or a test fails: this one, or `tests/unit/test_guides.py` if no test has
asked for it.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS: Final = ("# ", "$ ")
# A block of another language is unknown: its commands would be nobody's.
SCRIPTS: Final = ("sh",)
TYPED: Final = ("console",)
OTHERS: Final = ("", "toml", "yaml", "ini")
_BLOCK = re.compile(
    r"^(?P<title>\#{1,4}\ [^\n]*)$"
    r"|^\ *```(?P<language>\w*)\n(?P<text>.*?)^\ *```$",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_COMMENT = re.compile(r"(?:^|\s{2,})# .*$")
_DOCUMENT = re.compile(r"<<'?(\w+)'?$")


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences."""

    page: str
    section: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """What is typed, as it is printed, and what is printed below it."""

    page: str
    section: str
    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a test says that it runs."""

    test: str
    page: str
    section: str
    beginnings: tuple[str, ...] = ()

    def holds(self, command: Command) -> bool:
        """Return whether *command* is one of these."""
        place = (command.page, command.section)
        begins = not self.beginnings or command.text.startswith(self.beginnings)
        return place == (self.page, self.section) and begins


def pages() -> dict[str, Path]:
    """Return the pages for users by their names."""
    guides = sorted((REPOSITORY / "docs/guides").glob("*.md"))
    return {path.name: path for path in (REPOSITORY / "README.md", *guides)}


def blocks(page: str) -> list[Block]:
    """Return all blocks of *page*, in order."""
    return blocks_of(page, pages()[page].read_text("utf-8"))


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the blocks of *text*, which is that of *page*."""
    found, section = [], ""
    for match in _BLOCK.finditer(text):
        if match["title"]:
            section = match["title"].lstrip("# ")
        else:
            plain = textwrap.dedent(match["text"])
            found.append(Block(page, section, match["language"], plain))
    return found


def commands(page: str) -> list[Command]:
    """Return what *page* tells to type, in order; a script is one command."""
    return [each for block in blocks(page) for each in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    """Yield what is typed in *block*."""
    place = (block.page, block.section)
    if block.language in SCRIPTS:
        yield Command(*place, block.text)
    if block.language not in TYPED:
        return
    lines = block.text.splitlines()
    while lines:
        line = lines.pop(0)
        assert line.startswith(PROMPTS), f"{block.page}: nobody has typed: {line}"
        typed = line[2:]
        while typed.endswith("\\"):
            typed = typed.removesuffix("\\") + lines.pop(0).strip()
        typed = _COMMENT.sub("", typed)
        if document := _DOCUMENT.search(typed):
            while not typed.endswith(f"\n{document[1]}"):
                typed += "\n" + lines.pop(0)
        shown = []
        while lines and not lines[0].startswith(PROMPTS):
            shown.append(lines.pop(0))
        yield Command(*place, typed, tuple(shown))


def all_commands() -> list[Command]:
    """Return the commands of all pages."""
    return [each for page in pages() for each in commands(page)]


def claims() -> list[Claim]:
    """Return what the tests say that they run, read from their text."""
    found = []
    for path in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        if "mark.printed(" not in text:
            continue
        module = ast.parse(text)
        name = str(path.relative_to(REPOSITORY))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                test = f"{name}::{node.name}"
                found += [Claim(test, *each) for each in _printed(node)]
    return found


def _printed(function: ast.FunctionDef) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the arguments of each mark `printed` of *function*."""
    for mark in function.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith(
            "mark.printed"
        ):
            page, section, *beginnings = (ast.literal_eval(each) for each in mark.args)
            yield page, section, tuple(beginnings)


class Printed:
    """The commands that one test has to run; each of them is to be taken once."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.left = [
            command
            for claim in claims
            for command in commands(claim.page)
            if claim.holds(command)
        ]

    def take(self, beginning: str = "") -> Command:
        """Return the next command that begins so; it counts as run."""
        for command in self.left:
            if command.text.startswith(beginning):
                self.left.remove(command)
                return command
        raise AssertionError(f"the guide does not say {beginning!r} (any more)")

    def rest(self) -> list[Command]:
        """Return all commands that are left; they count as run."""
        taken, self.left = self.left, []
        return taken


def changed(text: str, places: Mapping[str, str]) -> str:
    """Return *text* with what stands for each of *places* put in."""
    for place, value in places.items():
        text = text.replace(place, value)
    return text
