"""`remora snapshot` and `remora clone`: copies of volumes at some time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from backends.system.clock import now_as_name
from plugin.cli import output
from plugin.cli.context import (
    Context,
    json_option,
    pass_context,
    volume_options,
    volume_path,
)
from plugin.cli.progress import call_with_progress
from plugin.model import check_name, check_snapshot_name

pause_option = click.option(
    "--pause",
    is_flag=True,
    help="Pause this node's running containers that use the volume meanwhile.",
)


@click.group()
def snapshot() -> None:
    """
    Copies of a volume at some time: create, ls, rm, restore.

    Each file of a snapshot is of one moment, but not all files are of the same one
    while something writes: stop the containers, or use --pause, which makes it as if
    the power had failed at that moment. It is taken where the volume's newest bytes
    are, and stays on that node; of a volume on a share, what other nodes have not
    written yet is not in it.
    """


@snapshot.command("create")
@click.argument("volume")
@click.argument("name", default="")
@pause_option
@json_option
@pass_context
def create_snapshot(
    context: Context, volume: str, name: str, pause: bool, as_json: bool
) -> None:
    """Take a snapshot of VOLUME  [default NAME: the time, 20261123T230501Z]."""
    name = check_snapshot_name(name) if name else now_as_name()
    with _paused(volume, pause):
        made = call_with_progress(
            context,
            f"{volume_path(volume)}/snapshots",
            {"snapshot": name},
            label=f"copying {volume}",
            copy=f"{volume}@{name}",
            quiet=as_json,
        )
    _warn_of_lost_attributes(made)
    output.print_answer(made, f"{volume}@{made['name']}", as_json=as_json)


@snapshot.command("ls")
@click.argument("volume")
@json_option
@pass_context
def list_snapshots(context: Context, volume: str, as_json: bool) -> None:
    """
    List the snapshots of VOLUME, oldest first.

    NODE is where it lies (* is this one): there it is removed, restored and cloned. A
    volume on a share has its snapshots there, and every node can do all of it.
    """
    found = context.client.call("GET", f"{volume_path(volume)}/snapshots")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("NAME", "NODE", "FILES", "SIZE", "CREATED"),
        [
            (
                each["name"],
                (each["node"] or "-") + ("*" if each["this_node"] else ""),
                each["files"],
                output.size(each["size_bytes"]),
                each["created_at"],
            )
            for each in found
        ],
    )


@snapshot.command("rm")
@click.argument("volume")
@click.argument("names", nargs=-1, required=True)
@json_option
@pass_context
def remove_snapshots(
    context: Context, volume: str, names: tuple[str, ...], as_json: bool
) -> None:
    """Remove snapshots of VOLUME, by NAMES; the volume stays as it is."""
    for name in names:
        path = f"{volume_path(volume)}/snapshots/{check_snapshot_name(name)}"
        context.client.call("DELETE", path)
        if not as_json:
            click.echo(f"{volume}@{name}")
    if as_json:
        output.print_json({"removed": names})


@snapshot.command("restore")
@click.argument("volume")
@click.argument("name")
@json_option
@pass_context
def restore(context: Context, volume: str, name: str, as_json: bool) -> None:
    """
    Give VOLUME the bytes of its snapshot NAME.

    Nothing may use the volume. The bytes that it has now become a snapshot themselves,
    so that nothing is lost; its name is printed.
    """
    answer = call_with_progress(
        context,
        f"{volume_path(volume)}/restore",
        {"snapshot": check_snapshot_name(name)},
        label=f"restoring {volume}",
        copy=volume,
        quiet=as_json,
    )
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"{volume} is {volume}@{name} again")
        click.echo(f"what it was before: {volume}@{answer['kept_as']}", err=True)


@click.command()
@click.argument("source")
@click.argument("name")
@volume_options
@pause_option
@json_option
@pass_context
def clone(
    context: Context,
    source: str,
    name: str,
    options: dict[str, str],
    pause: bool,
    as_json: bool,
) -> None:
    """
    Make volume NAME with the bytes of SOURCE, a volume or VOLUME@SNAPSHOT.

    The new volume is like its source but for the options given, and independent of it
    from the start. Where storage can, the two share blocks and the copy takes no time.
    """
    volume, _, at = source.partition("@")
    with _paused(volume, pause and not at):
        made = call_with_progress(
            context,
            "/v1/clone",
            {"name": check_name(name), "source": source, "options": options},
            label=f"copying {source}",
            copy=name,
            quiet=as_json,
        )
    output.print_answer(made, name, as_json=as_json)


@contextmanager
def _paused(volume: str, pause: bool) -> Iterator[None]:
    """Pause the containers that use *volume*, if that is wished for."""
    if not pause:
        yield
        return
    from plugin.cli.engine import Engine  # noqa: PLC0415 - requests is slow

    with Engine().paused_users_of(volume):
        yield


def _warn_of_lost_attributes(made: dict[str, Any]) -> None:
    if made["attributes_lost"]:
        click.echo(
            f"warning: {made['attributes_lost']} extended attributes or ACLs could not "
            "be kept there",
            err=True,
        )
