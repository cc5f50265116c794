"""`remora import`: take over an existing volume of Docker's `local` driver."""

from __future__ import annotations

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_options
from plugin.cli.progress import call_with_progress


@click.command("import")
@click.argument("local_volume")
@click.option("--name", help="Name of the new volume  [default: LOCAL_VOLUME]")
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
    local_volume: str,
    name: str | None,
    remove_source: bool,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """
    Copy Docker's LOCAL_VOLUME into a new Remora volume.

    Owners, modes, links, sparse files, extended attributes and ACLs are kept. Stop the
    containers that use it first. Until the copy is whole and on disk the new volume
    does not exist. The local volume is only read, unless --remove-source is given; as
    long as both have one name, Docker uses the local one.
    """
    from plugin.cli.engine import Engine  # noqa: PLC0415 - requests is slow

    engine = Engine()
    source = engine.local_volume_path(local_volume)
    target = name or local_volume
    volume = call_with_progress(
        context,
        "/v1/import",
        {"name": target, "source": str(source), "options": options},
        label=f"importing {target}",
        copy=target,
        quiet=as_json,
    )
    if remove_source:
        engine.remove_volume(local_volume)
    if as_json:
        output.print_json(volume)
        return
    click.echo(target)
    if not remove_source and target == local_volume:
        click.echo(
            f"Docker still uses the local volume: docker volume rm {local_volume}, "
            "then the name stands for this one.",
            err=True,
        )
