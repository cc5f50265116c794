"""What every verb shares: the configuration and the daemon's client, made when used."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plugin.config import Config, load
from plugin.model import check_name

if TYPE_CHECKING:
    from plugin.cli.client import Client


class Context:
    """The command line's --config and what follows from it."""

    def __init__(self, config_path: Path | None) -> None:
        self.config_path = config_path

    @cached_property
    def config(self) -> Config:
        """The checked configuration."""
        return load(self.config_path, os.environ)

    @cached_property
    def client(self) -> Client:
        """A client of the configured control socket."""
        # requests takes longer to import than most verbs to run.
        from plugin.cli.client import Client  # noqa: PLC0415

        return Client(self.config.control_socket)


def volume_path(name: str) -> str:
    """Return the control API's path of volume *name*; refuse what is no name."""
    return f"/v1/volumes/{check_name(name)}"


pass_context = click.make_pass_decorator(Context)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


volume_options = click.option(
    "-o",
    "--opt",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=lambda _context, _parameter, values: pairs_of(values, "KEY=VALUE"),
    help="An option of the volume, as with docker volume create; repeatable.",
)


def pairs_of(values: tuple[str, ...], form: str) -> dict[str, str]:
    """Return *values*, each of which has the *form* KEY=VALUE, under whatever names."""
    pairs = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"'{value}' is not {form}")
        pairs[key] = text
    return pairs
