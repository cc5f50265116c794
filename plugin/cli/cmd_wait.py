"""`remora wait`: return when what volumes need is there."""

from __future__ import annotations

from typing import Any, Final

import click

from backends.errors import DeadlineError, RemoraError
from backends.options import duration, seconds
from backends.system.clock import Deadline, pause
from plugin.cli.client import Client
from plugin.cli.context import Context, pass_context

_POLL_S: Final = 1.0


def _within(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return seconds(duration(text))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option(
    "--timeout",
    "within_s",
    default="5m",
    show_default=True,
    callback=_within,
    help="Give up after this.",
)
@pass_context
def wait(context: Context, within_s: float) -> None:
    """
    Return when the daemon, its pool, its shares and etcd answer.

    For a drop-in of docker.service: after a power failure containers would fail to
    start while storage is still booting. The error names what is not there.
    """
    deadline = Deadline(within_s)
    while lacking := _lacking(context.client):
        if deadline.passed():
            raise DeadlineError(
                f"after {within_s:.0f} s: {'; '.join(lacking)}",
                hint="remora status and remora cluster status tell more",
            )
        pause(min(_POLL_S, deadline.remaining_s()))


def _lacking(client: Client) -> list[str]:
    """Return what is not there yet, for people."""
    try:
        status: dict[str, Any] = client.call("GET", "/v1/status")
        cluster: dict[str, Any] = client.call("GET", "/v1/cluster")
    except RemoraError as error:
        return [str(error)]
    lacking = [
        f"{name}: {facts['health']}"
        for name, facts in sorted(status["storages"].items())
        if facts["health"] != "ok"
    ]
    lacking += [
        f"{name} was not read yet"
        for name, facts in sorted(status["storages"].items())
        if facts["health"] == "ok" and facts["total_bytes"] is None
    ]
    if not cluster["answers"]:
        lacking.append("etcd does not answer")
    elif cluster["mirror_age_s"] is not None:
        lacking.append("etcd's records were not read yet")
    return lacking
