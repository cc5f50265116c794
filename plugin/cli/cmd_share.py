"""`remora share`: which share of an NFS server is the right one."""

from __future__ import annotations

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context


@click.group()
def share() -> None:
    """NFS shares that volumes are on: accept."""


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
