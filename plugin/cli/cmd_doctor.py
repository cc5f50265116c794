"""`remora doctor`: is this machine fit, with evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context


@click.command()
@json_option
@pass_context
def doctor(context: Context, as_json: bool) -> None:
    """
    Check privileges, kernel, programs, sockets, pool, shares, mounts and nodes.

    It also tells of bytes that were set apart. Each line is a check, its verdict and
    the evidence; a hint says what to do. Exits with 1 if a check failed.
    """
    from plugin.cli.doctor import examine  # noqa: PLC0415 - only this verb needs it

    def held_ids() -> set[str]:
        volumes = context.client.call("GET", "/v1/volumes")
        return {each["id"] for each in volumes if each["mountpoint"]}

    def storages() -> dict[str, dict[str, Any]]:
        return dict(context.client.call("GET", "/v1/status")["storages"])

    def nodes() -> list[dict[str, Any]]:
        return list(context.client.call("GET", "/v1/nodes"))

    def set_apart() -> list[dict[str, Any]]:
        return list(context.client.call("GET", "/v1/quarantine"))

    findings = examine(context.config, held_ids, storages, nodes, set_apart)
    if as_json:
        output.print_json([asdict(each) for each in findings])
    else:
        for each in findings:
            hint = f"  (hint: {each.hint})" if each.hint else ""
            click.echo(f"{each.verdict:8} {each.check:15} {each.evidence}{hint}")
    if any(each.verdict == "failed" for each in findings):
        raise SystemExit(1)
