"""`remora share`: which share of an NFS server is the right one."""

from __future__ import annotations

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context


@click.group()
def share() -> None:
    """NFS shares that volumes are on: accept, move."""


@share.command()
@click.argument("share")
@click.option("--force", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def accept(context: Context, share: str, force: bool, as_json: bool) -> None:
    """
    Let what answers as SHARE, SERVER:/PATH, be the right share from now on.

    For a server that was replaced on purpose. Volumes that are not on it are then
    forgotten, as if they had been removed there.
    """
    if not force:
        click.confirm(
            f"Forget the volumes that are not on what answers as {share}?",
            abort=True,
            err=True,
        )
    answer = context.client.call("POST", "/v1/shares/accept", {"share": share})
    output.print_answer(answer, answer["identity"], as_json=as_json)


@share.command()
@click.argument("share")
@click.argument("to")
@json_option
@pass_context
def move(context: Context, share: str, to: str, as_json: bool) -> None:
    """
    Look for the volumes of SHARE, SERVER:/PATH, on TO from now on.

    For a server, or an export, that has another name now. No byte is moved: TO has to
    be the same share. Stop the volumes' containers first.
    """
    request = {"share": share, "to": to}
    answer = context.client.call(
        "POST", "/v1/shares/move", request, read_timeout_s=None
    )
    output.print_answer(answer, "\n".join(answer["volumes"]), as_json=as_json)
