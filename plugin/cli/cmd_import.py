"""`remora import`: take over an existing volume of Docker's `local` driver."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_options


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
    volume = _copy(context, target, source, options, quiet=as_json)
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


def _copy(
    context: Context, name: str, source: Path, options: dict[str, str], *, quiet: bool
) -> Any:
    """Return the new volume; the daemon copies while we show how far it is."""
    outcome: dict[str, Any] = {}

    def call() -> None:
        body = {"name": name, "source": str(source), "options": options}
        try:
            outcome["volume"] = context.client.call(
                "POST", "/v1/import", body, read_timeout_s=None
            )
        except BaseException as error:  # noqa: BLE001 - raised below, in our thread
            outcome["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    if quiet:
        thread.join()
    else:
        _show_progress(context, name, thread)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["volume"]


def _show_progress(context: Context, name: str, copying: threading.Thread) -> None:
    from plugin.cli.client import Client  # noqa: PLC0415 - requests is slow

    # A session of its own: the other one waits in the copying thread.
    client = Client(context.config.control_socket)
    with click.progressbar(length=100, label=f"importing {name}") as bar:
        while copying.is_alive():
            copying.join(timeout=0.5)
            imports = client.call("GET", "/v1/status")["imports"]
            bar.update(imports.get(name, {}).get("percent", bar.pos) - bar.pos)
        bar.update(100 - bar.pos)
