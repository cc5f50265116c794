"""`remora replica`: which nodes keep a copy of a volume."""

from __future__ import annotations

from urllib.parse import quote

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_path


@click.group()
def replica() -> None:
    """Copies of a volume on the nodes of the cluster: ls, add, rm."""


@replica.command("ls")
@click.argument("volume")
@json_option
@pass_context
def list_replicas(context: Context, volume: str, as_json: bool) -> None:
    """
    List the copies of VOLUME.

    STATE is owner (mounted there), holder (has the newest commit), behind, or gone (the
    node was removed). COMMIT is the newest one that is known of; LACKS is what of it
    the node's filesystem cannot hold.
    """
    found = context.client.call("GET", f"{volume_path(volume)}/replicas")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("NODE", "STATE", "COMMIT", "ALIVE", "LACKS"),
        [
            (
                each["node"],
                each["state"],
                each["commit"] or "-",
                "yes" if each["alive"] else "no",
                each["lacks"] or "-",
            )
            for each in found
        ],
    )


@replica.command()
@click.argument("volume")
@click.argument("node")
@json_option
@pass_context
def add(context: Context, volume: str, node: str, as_json: bool) -> None:
    """
    Let NODE keep a copy of VOLUME, which is made in the background.

    The volume is to have as many copies from now on as it has with this one.
    """
    path = f"{volume_path(volume)}/replicas"
    answer = context.client.call("POST", path, {"node": node})
    output.print_answer(answer, answer["added"], as_json=as_json)


@replica.command("rm")
@click.argument("volume")
@click.argument("node")
@json_option
@pass_context
def remove(context: Context, volume: str, node: str, as_json: bool) -> None:
    """
    Let NODE keep no copy of VOLUME any more.

    Refused if no other node has the newest commit, or if NODE has it mounted. The
    volume is to have no more copies from now on than it has without this one.
    """
    path = f"{volume_path(volume)}/replicas/{quote(node, safe='')}"
    answer = context.client.call("DELETE", path)
    output.print_answer(answer, answer["removed"], as_json=as_json)
