"""`remora import`: take over a volume of Docker's `local` driver, or a directory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_options
from plugin.cli.progress import call_with_progress

if TYPE_CHECKING:
    from plugin.cli.engine import Engine


@click.command("import")
@click.argument("source")
@click.option("--name", help="Name of the new volume  [default: SOURCE]")
@click.option(
    "--remove-source",
    is_flag=True,
    help="Afterwards have Docker remove the local volume, so that its name is free.",
)
@volume_options
@json_option
@pass_context
def import_volume(
    context: Context,
    source: str,
    name: str | None,
    remove_source: bool,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """
    Copy SOURCE into a new Remora volume.

    SOURCE is a volume of Docker's `local` driver or, as a path, a directory, such as
    where another plugin's storage is mounted; its path has no symbolic link in it, and
    no other filesystem is mounted inside. Owners, modes, links, sparse files,
    extended attributes and ACLs are kept. Stop the containers that use it first. Until
    the copy is whole and on disk the new volume does not exist. The source is only
    read, unless --remove-source is given; as long as both have one name, Docker uses
    the local one.
    """
    is_directory = "/" in source
    if is_directory and (name is None or remove_source):
        raise click.UsageError(
            "a directory stays where it is, without --remove-source; --name is needed"
        )
    engine = None if is_directory else _engine()
    path = engine.local_volume_path(source) if engine else Path(source).absolute()
    if is_directory and _is_empty(path):
        raise click.UsageError(f"{path} is empty: is the disk mounted there?")
    target = name or source
    volume = call_with_progress(
        context,
        "/v1/import",
        {"name": target, "source": str(path), "options": options},
        label=f"importing {target}",
        copy=target,
        quiet=as_json,
    )
    if remove_source and engine:
        engine.remove_volume(source)
    if as_json:
        output.print_json(volume)
        return
    click.echo(target)
    if not remove_source and target == source:
        click.echo(
            f"Docker still uses the local volume: docker volume rm {source}, "
            "then the name stands for this one.",
            err=True,
        )


def _is_empty(path: Path) -> bool:
    """Return whether *path* is a directory with nothing in it, as far as we can see."""
    with suppress(OSError):
        return not any(path.iterdir())
    return False


def _engine() -> Engine:
    from plugin.cli.engine import Engine  # noqa: PLC0415 - requests is slow

    return Engine()
