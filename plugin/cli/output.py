"""What the CLI prints: JSON for programs, tables and lines for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def print_json(value: object) -> None:
    """Print *value* as indented JSON."""
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_answer(answer: object, line: str, *, as_json: bool) -> None:
    """Print *answer* as JSON if that was asked for, else *line*, for people."""
    if as_json:
        print_json(answer)
    else:
        click.echo(line)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print *rows* in aligned columns, as `docker ... ls` does."""
    lines = [list(map(str, headings)), *[list(map(str, row)) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("   ".join(cells).rstrip())


def size(count: int | None) -> str:
    """Return *count* bytes as people write them."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return str(count)


def print_facts(facts: dict[str, Any], *, indent: int = 0) -> None:
    """Print nested *facts*, one a line."""
    for key, value in facts.items():
        label = f"{' ' * indent}{key.replace('_', ' ')}:"
        if isinstance(value, dict):
            click.echo(label)
            print_facts(value, indent=indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            click.echo(label)
            for number, each in enumerate(value, 1):
                print_facts({str(number): each}, indent=indent + 2)
        else:
            shown = size(value) if key.endswith("_bytes") else value
            click.echo(f"{label} {shown}".rstrip())
