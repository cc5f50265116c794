"""`remora quarantine`: bytes that a node wrote and the cluster never got."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from plugin.cli import output
from plugin.cli.context import (
    Context,
    json_option,
    pass_context,
    volume_options,
    volume_path,
)
from plugin.cli.progress import call_with_progress
from plugin.model import check_name
from plugin.peers.lines import error_from_json

_LIMIT: Final = 1000
_LIMIT_MAX: Final = 1_000_000
_ENDED_EARLY: Final = {"code": "internal", "cause": "the daemon's answer ended early"}


@click.group()
def quarantine() -> None:
    """
    Bytes that were set apart: ls, diff, export, clone, discard.

    A node that was cut off may have written what the cluster never got. When it is
    back, another node may have gone on with the volume; then what it wrote is set apart
    there, and stays until it is discarded. VOLUME is a name, or an id if the volume was
    removed; COMMIT is what `ls` shows.
    """


@quarantine.command("ls")
@click.argument("volume", default="")
@json_option
@pass_context
def list_all(context: Context, volume: str, as_json: bool) -> None:
    """List what is set apart in the cluster; * marks this node."""
    query = f"?volume={check_name(volume)}" if volume else ""
    found = context.client.call("GET", f"/v1/quarantine{query}")
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("VOLUME", "COMMIT", "NODE", "FILES", "SIZE", "SET APART"),
        [
            (
                each["volume_id"] if each["removed"] else each["volume"],
                each["commit"],
                each["node"] + ("*" if each["this_node"] else ""),
                _at_least(each, str(each["files"])),
                _at_least(each, output.size(each["size_bytes"])),
                each["set_apart_at"],
            )
            for each in found
        ],
    )


@quarantine.command()
@click.argument("volume")
@click.argument("commit")
@click.option(
    "--contents",
    is_flag=True,
    help="Compare the content of files of one size and time, too; this reads them all.",
)
@click.option(
    "--limit",
    type=click.IntRange(0, _LIMIT_MAX),
    default=_LIMIT,
    show_default=True,
    help="How many differences to show; all are counted.",
)
@json_option
@pass_context
def diff(
    context: Context,
    volume: str,
    commit: str,
    contents: bool,
    limit: int,
    as_json: bool,
) -> None:
    r"""
    Show in what COMMIT differs from VOLUME as this node has it now.

    "added" is in the bytes set apart alone, "removed" in the volume alone. Unprintable
    characters of names are shown as \n or \xff, and a backslash as \\.
    """
    path = _path(volume, commit, f"/diff?limit={limit}&contents={int(contents)}")
    changes, end = [], {}
    for line in context.client.lines(path):
        found = json.loads(line)
        if "change" not in found:
            end = found
        elif as_json:
            changes.append(found)
        else:
            what = f"  ({', '.join(found['what'])})" if found["what"] else ""
            click.echo(f"{found['change']:8} {found['kind']:10} {found['path']}{what}")
    if "counts" not in end:
        raise error_from_json(end.get("error", _ENDED_EARLY))
    if as_json:
        output.print_json({"changes": changes, **end})
        return
    counts = end["counts"]
    told = ", ".join(f"{count} {change}" for change, count in counts.items())
    if hidden := sum(counts.values()) - end["shown"]:
        told += f"; {hidden} are not shown: see --limit"
    click.echo(told, err=True)


@quarantine.command()
@click.argument("volume")
@click.argument("commit")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A new file to write to  [default: standard output]",
)
@pass_context
def export(context: Context, volume: str, commit: str, target: Path | None) -> None:
    """
    Write COMMIT of VOLUME as a tar archive, with attributes, ACLs and holes.

    To unpack it as it was: tar --extract --xattrs --xattrs-include='*' --acls
    --same-owner --numeric-owner. Sockets are left out, as tar does.
    """
    path = _path(volume, commit, "/export")
    if target is None and sys.stdout.isatty():
        raise click.UsageError("a tar archive is nothing for a terminal: use --output")
    with _opened(target) as file:
        for chunk in context.client.stream(path):
            file.write(chunk)


@quarantine.command()
@click.argument("volume")
@click.argument("commit")
@click.argument("name")
@volume_options
@json_option
@pass_context
def clone(
    context: Context,
    volume: str,
    commit: str,
    name: str,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """
    Make volume NAME with the bytes of COMMIT of VOLUME.

    It is like VOLUME but for the options given, and independent of it.
    """
    call_with_progress(
        context,
        _path(volume, commit, "/clone"),
        {"name": check_name(name), "options": options},
        label=f"copying {volume} {commit}",
        copy=name,
        quiet=as_json,
    )
    if as_json:
        made = context.client.call("GET", volume_path(name))
        output.print_json(made)
    else:
        click.echo(name)


@quarantine.command()
@click.argument("volume")
@click.argument("commit")
@click.option("--force", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def discard(
    context: Context, volume: str, commit: str, force: bool, as_json: bool
) -> None:
    """Delete COMMIT of VOLUME, which no other node has."""
    path = _path(volume, commit, "")
    if not force:
        click.confirm(
            f"Delete commit {commit} of '{volume}', which no other node has?",
            abort=True,
            err=True,
        )
    answer = context.client.call("DELETE", path)
    if as_json:
        output.print_json(answer)
        return
    click.echo(f"{volume} {commit}")
    if not answer["cluster_knows"]:
        click.echo("other nodes hear of it when the cluster answers", err=True)


@contextmanager
def _opened(target: Path | None) -> Iterator[BinaryIO]:
    """Yield a file that becomes *target* when all is written; it must be new."""
    from backends.system import files  # noqa: PLC0415 - only this verb needs it

    if target is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if target.exists():
        raise click.UsageError(f"{target} is there already")
    try:
        with files.replacing(target.absolute()) as file:
            yield file
    except OSError as error:
        raise click.UsageError(f"cannot write {target}: {error.strerror}") from error


def _at_least(row: dict[str, Any], text: str) -> str:
    return text if row["whole"] else f">{text}"


def _path(volume: str, commit: str, below: str) -> str:
    from backends.rsync.quarantine import check_commit  # noqa: PLC0415 - only these verbs need it

    return f"/v1/quarantine/{check_name(volume)}/{check_commit(commit)}{below}"
