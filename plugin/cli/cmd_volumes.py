"""The verbs on volumes: ls, inspect, status, create, rm, repair."""

from __future__ import annotations

from typing import Any

import click

from plugin.cli import output
from plugin.cli.context import (
    Context,
    json_option,
    pass_context,
    volume_options,
    volume_path,
)

# What fits into a column; `inspect` says the rest.
_HEALTH_WORDS = ("ok", "creating", "unknown", "stale", "replaced", "unreachable")


@click.command("ls")
@json_option
@pass_context
def list_volumes(context: Context, as_json: bool) -> None:
    """List the volumes; of HEALTH `creating` are those that are not made to the end."""
    volumes = context.client.call("GET", "/v1/volumes")
    if as_json:
        output.print_json(volumes)
        return
    output.print_table(
        ("NAME", "BACKEND", "MOUNTED", "HEALTH", "AVAILABLE", "CREATED"),
        [
            (
                each["name"],
                each["backend"],
                _mounted(each),
                each["health"] if each["health"] in _HEALTH_WORDS else "error",
                output.size(each["available_bytes"])
                if each.get("available_bytes")
                else "-",
                each["created_at"],
            )
            for each in volumes
        ],
    )


def _mounted(volume: dict[str, Any]) -> str:
    """Return whether it is mounted, and for whom as far as a scheduler has told."""
    users = [
        f"{kind} {each[kind]}"
        for each in volume.get("published", ())
        for kind in ("pod", "alloc")
        if kind in each
    ]
    more = f" and {len(users) - 1} more" if len(users) > 1 else ""
    if users:
        return f"{users[0]}{more}"
    return "yes" if volume["mountpoint"] else "no"


@click.command()
@click.argument("name")
@json_option
@pass_context
def inspect(context: Context, name: str, as_json: bool) -> None:
    """Show everything about volume NAME."""
    volume = context.client.call("GET", volume_path(name))
    if as_json:
        output.print_json(volume)
    else:
        output.print_facts(volume)


@click.command()
@json_option
@pass_context
def status(context: Context, as_json: bool) -> None:
    """Show the daemon's state: storage, volumes, what is under way."""
    state = context.client.call("GET", "/v1/status")
    if as_json:
        output.print_json(state)
    else:
        output.print_facts(state)


@click.command()
@click.argument("name")
@volume_options
@json_option
@pass_context
def create(context: Context, name: str, options: dict[str, str], as_json: bool) -> None:
    """Create volume NAME, as `docker volume create -d remora` does."""
    volume = context.client.call(
        "POST", "/v1/volumes", {"name": name, "options": options}
    )
    output.print_answer(volume, volume["name"], as_json=as_json)


@click.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Do not ask.")
@json_option
@pass_context
def remove(context: Context, name: str, force: bool, as_json: bool) -> None:
    """
    Remove volume NAME and its data.

    A volume that is in use is refused, with or without --force. Prefer `docker volume
    rm`, which also makes Docker forget the name.
    """
    if not force:
        click.confirm(f"Remove volume '{name}' and all its data?", abort=True, err=True)
    answer = context.client.call("DELETE", volume_path(name))
    output.print_answer(answer, name, as_json=as_json)


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@pass_context
def repair(context: Context, dry_run: bool, as_json: bool) -> None:
    """
    Make records agree with storage and with what runs.

    Volumes found on storage without a record (the store was lost) are adopted,
    creations that were broken off are undone, and mounts that no container uses any
    more are released. No data is changed.
    """
    report = context.client.call("POST", "/v1/repair", {"dry_run": dry_run})
    if as_json:
        output.print_json(report)
        return
    for verb in ("adopted", "undone", "released", "refused"):
        for line in report[verb]:
            click.echo(f"{'would be ' if dry_run else ''}{verb}: {line}")
    if not any(report.values()):
        click.echo("nothing to repair")
