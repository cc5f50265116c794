"""`remora doctor`: is this machine fit, with evidence."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache, partial
from typing import Any, Final

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context
from plugin.cli.doctor_engine import SeenByEngine
from plugin.config import DEFAULT_PATH
from plugin.errors import EngineError

_ENGINE_TIMEOUT_S: Final = 5.0


@click.command()
@json_option
@pass_context
def doctor(context: Context, as_json: bool) -> None:
    """
    Check the machine, its sockets, pool, shares, mounts, nodes and volumes.

    It also tells of bytes that were set apart. Each line is a check, its verdict and
    the evidence; a hint says what to do. Exits with 1 if a check failed.
    """
    from plugin.cli.doctor import examine  # noqa: PLC0415 - only this verb needs it

    @cache
    def engine() -> SeenByEngine:
        return _seen_by_engine(context.config.plugin_socket.stem)

    @cache
    def told(what: str) -> Any:
        return context.client.call("GET", f"/v1/{what}")

    findings = examine(
        context.config,
        context.config_path or DEFAULT_PATH,
        volumes=partial(told, "volumes"),
        status=partial(told, "status"),
        nodes=partial(told, "nodes"),
        set_apart=partial(told, "quarantine"),
        engine=engine,
    )
    if as_json:
        output.print_json([asdict(each) for each in findings])
    else:
        for each in findings:
            hint = f"  (hint: {each.hint})" if each.hint else ""
            click.echo(f"{each.verdict:8} {each.check:15} {each.evidence}{hint}")
    if any(each.verdict == "failed" for each in findings):
        raise SystemExit(1)


def _seen_by_engine(driver: str) -> SeenByEngine:
    """Return what Docker tells; nothing if there is no Docker here."""
    from plugin.cli.engine import Engine  # noqa: PLC0415 - only this verb needs it

    try:
        engine = Engine(timeout_s=_ENGINE_TIMEOUT_S)
        return SeenByEngine(
            engine.local_volumes(), engine.failed_starts(driver), engine.info()
        )
    except EngineError:
        return SeenByEngine()
