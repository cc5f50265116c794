"""`remora volume`: what has happened to a volume."""

from __future__ import annotations

from typing import Any, Final

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_path

_EVENTS_MAX: Final = 1000


@click.group()
def volume() -> None:
    """Who owned a volume when, and what happened to it: history, events."""


@volume.command()
@click.argument("name", metavar="VOLUME")
@json_option
@pass_context
def history(context: Context, name: str, as_json: bool) -> None:
    """
    Show the epochs of VOLUME: who owned it from when to when, and with which commit.

    BASE is the commit that the owner began with. LOST is a newer one that was known to
    exist, and that no node which answered had.
    """
    found = context.client.call("GET", f"{volume_path(name)}/history")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("EPOCH", "OWNER", "BEGAN", "BASE", "LOST", "ENDED"),
        [
            (
                each["epoch"],
                each["owner"],
                each["began_at"] or "-",
                each["base"],
                each["lost"] or "-",
                _end(found, each),
            )
            for each in found["epochs"]
        ],
    )
    if found["ownership"] == "recovering":
        click.echo(
            f"node '{found['owner']}' is about to begin epoch {found['epoch']}",
            err=True,
        )


@volume.command()
@click.argument("name", metavar="VOLUME")
@click.option(
    "--limit",
    type=click.IntRange(1, _EVENTS_MAX),
    default=50,
    show_default=True,
    help="The newest so many.",
)
@json_option
@pass_context
def events(context: Context, name: str, limit: int, as_json: bool) -> None:
    """
    Show what happened to VOLUME on each node, the newest last.

    All nodes that had a part in it are asked. Times are of each node's own clock. A
    volume that was removed is known for as long as this node has an event of it.
    """
    found = context.client.call("GET", f"{volume_path(name)}/events?limit={limit}")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("AT", "NODE", "EVENT", "FACTS"),
        [
            (each["at"], each["node"], each["kind"], _facts(each["facts"]))
            for each in found["events"]
        ],
    )
    for each in found["silent"]:
        click.echo(
            f"warning: the events of node '{each['node']}' are not shown: "
            f"{each['cause']}",
            err=True,
        )
    for node in found["cut"]:
        click.echo(
            f"warning: node '{node}' has older events than there is room for; with "
            "those of its time from other nodes they are left out: ask there",
            err=True,
        )


def _end(found: dict[str, Any], row: dict[str, Any]) -> str:
    if row["ended"] == "released":
        return str(row["released_at"])
    if row["ended"] == "owned":
        return "owned now" if found["locked"] else "not released, its owner is silent"
    return {"not-released": "not released", "unknown": "-"}[row["ended"]]


def _facts(facts: dict[str, Any]) -> str:
    """Return *facts* in a line: `epoch 3, base 2.9`."""
    shown = []
    for key, value in facts.items():
        if key.endswith("_bytes") and isinstance(value, int):
            shown.append(f"{key.removesuffix('_bytes')} {output.size(value)}")
        elif key.endswith("_ms"):
            shown.append(f"{key.removesuffix('_ms')} {value} ms")
        else:
            shown.append(f"{key} {value}")
    return ", ".join(shown)
