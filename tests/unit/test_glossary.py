"""The glossary: each word once, in order, and a word of the product."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.guides import pages
from tests.support.host import REPOSITORY


def words() -> list[str]:
    """Return the words that the glossary explains."""
    text = pages()["glossary.md"].read_text()
    return re.findall(r"^\| ([a-z ]+) \| (?!meaning)", text, re.MULTILINE)


def texts() -> Iterator[str]:
    """Yield each text of the product's code that is no docstring."""
    for package in ("plugin", "backends"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_each_word_is_explained_once_and_in_order() -> None:
    found = words()
    assert len(found) > 30
    assert found == sorted(set(found))


def test_each_word_is_one_of_the_product() -> None:
    said = "\n".join(texts()).lower()
    strange = [each for each in words() if not re.search(rf"\b{each}s?\b", said)]
    assert strange == []


def test_words_that_users_meet_are_there() -> None:
    met = {
        "commit",
        "member",
        "owner",
        "holder",
        "epoch",
        "fuzzy",
        "pool",
        "profile",
        "share",
    }
    assert met <= set(words())
