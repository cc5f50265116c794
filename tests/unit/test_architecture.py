"""docs/ARCHITECTURE.md names functions in order: each is where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs/ARCHITECTURE.md").read_text()
WALKS = re.search(r"\n## Four ways through the code\n(.*?)\n## ", TEXT, re.DOTALL)
NAMED = re.compile(r"`([a-z_/]+\.py)`\s+`([A-Za-z_.]+)`")
FILES_BETWEEN_MAX = 6


def defined(path: Path) -> set[str]:
    """Return the functions, classes and methods of a module, with their class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def walks() -> dict[str, list[tuple[str, str]]]:
    """Return what each walk names, by its heading."""
    assert WALKS is not None
    parts = re.split(r"\n### (.+)\n", WALKS[1])
    return {
        heading: NAMED.findall(text)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_there_are_four() -> None:
    assert [len(named) > 5 for named in walks().values()] == [True] * 4


@pytest.mark.parametrize("heading", walks())
def test_each_function_is_there(heading: str) -> None:
    for file, name in walks()[heading]:
        root = "" if file.startswith("backends/") else "plugin"
        assert name in defined(REPOSITORY / root / file), f"{file}: {name}"


def test_a_mount_passes_few_files() -> None:
    files = [file for file, _ in walks()["A Mount on one node"]]
    route = files.index("api/docker/http.py")
    backend = files.index("backends/rsync/backend.py")
    assert len(set(files[route + 1 : backend])) <= FILES_BETWEEN_MAX
