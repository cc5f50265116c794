"""`remora node`: the cluster's nodes."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from plugin.cli import output
from plugin.cli.cmd_enroll import enroll
from plugin.cli.context import Context, json_option, pass_context


@click.group()
def node() -> None:
    """Nodes of the cluster: ls, inspect, enroll, drain, undrain, rm."""


node.add_command(enroll)


@node.command("ls")
@json_option
@pass_context
def list_nodes(context: Context, as_json: bool) -> None:
    """
    List the nodes; * marks this one.

    CLOCK is how far a node's clock is ahead of this one's, in seconds.
    """
    found = context.client.call("GET", "/v1/nodes")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("NAME", "STATE", "ADDRESS", "VERSION", "CAPACITY/FREE", "CLOCK"),
        [
            (
                each["name"] + ("*" if each["this_node"] else ""),
                each["state"],
                each["addresses"][0] if each["addresses"] else "-",
                each["version"],
                _capacity(each),
                _clock(each),
            )
            for each in found
        ],
    )
    for each in found:
        for fault in filter(None, (each["fault"], each["clock_warning"])):
            click.echo(f"warning: {fault}", err=True)


@node.command()
@click.argument("name")
@json_option
@pass_context
def inspect(context: Context, name: str, as_json: bool) -> None:
    """Show everything about the node of that NAME or id."""
    found = context.client.call("GET", _path(name))
    if as_json:
        output.print_json(found)
        return
    addresses = ", ".join(found["addresses"]) or "-"
    output.print_facts({**found, "addresses": addresses})


@node.command()
@click.argument("name")
@json_option
@pass_context
def drain(context: Context, name: str, as_json: bool) -> None:
    """
    Let node NAME take nothing new.

    What it runs stays; volumes that become its own anew do not, and copies of volumes
    move to other nodes.
    """
    _mark(context, name, "drain", as_json=as_json)


@node.command()
@click.argument("name")
@json_option
@pass_context
def undrain(context: Context, name: str, as_json: bool) -> None:
    """Let node NAME take new things again."""
    _mark(context, name, "undrain", as_json=as_json)


@node.command("rm")
@click.argument("name")
@click.option(
    "--force", is_flag=True, help="Even if it has data that no other node has."
)
@json_option
@pass_context
def remove(context: Context, name: str, force: bool, as_json: bool) -> None:
    """
    Forget node NAME, which is gone for good.

    A node whose daemon lives is refused, with or without --force.
    """
    answer = context.client.call("DELETE", _path(name) + ("?force=1" if force else ""))
    output.print_answer(answer, answer["removed"], as_json=as_json)


@node.command("new-identity")
@json_option
@pass_context
def new_identity(context: Context, as_json: bool) -> None:
    """
    Make this machine another node than the one whose disk it has a copy of.

    Its daemon must be stopped; the next start chooses a new id and new keys. The data
    in the pool stays.
    """
    from plugin.daemon.node import forget_identity  # noqa: PLC0415 - only this verb needs it

    forgotten = forget_identity(context.config.state_dir)
    output.print_answer({"forgotten": forgotten}, forgotten, as_json=as_json)


def _mark(context: Context, name: str, verb: str, *, as_json: bool) -> None:
    answer = context.client.call("POST", f"{_path(name)}/{verb}")
    output.print_answer(answer, answer["name"], as_json=as_json)


def _capacity(row: dict[str, Any]) -> str:
    sizes = (row["pool_total_bytes"], row["pool_available_bytes"])
    return " / ".join(map(output.size, sizes))


def _clock(row: dict[str, Any]) -> str:
    if row["clock_offset_s"] is None:
        return "-"
    return f"{row['clock_offset_s']:+.1f} s"


def _path(name: str) -> str:
    return f"/v1/nodes/{quote(name, safe='')}"
