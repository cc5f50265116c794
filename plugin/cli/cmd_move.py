"""`remora move`: a volume's bytes are on a node before its container starts there."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import click

from backends.system import clock
from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context, volume_path
from plugin.cli.progress import clear_line, show_line

_INTERVAL_S: Final = 0.5


@click.command()
@click.argument("volume")
@click.argument("node")
@json_option
@pass_context
def move(context: Context, volume: str, node: str, as_json: bool) -> None:
    """
    Bring VOLUME to NODE ahead of time, while containers go on writing.

    NODE keeps a copy from then on. Stopping the container and starting it on NODE is
    the scheduler's or yours to do; what is left for that moment is little, and told.
    Breaking off (Ctrl-C) ends the waiting only: the copy is brought in step all the
    same.
    """
    path = f"{volume_path(volume)}/move"
    state = context.client.call("POST", path, {"node": node})
    where = f"{path}?owner={quote(state['owner'], safe='')}"
    try:
        while state["state"] == "running":
            if not as_json:
                show_line(_so_far(state))
            clock.pause(_INTERVAL_S)
            state = context.client.call("GET", where)
    except KeyboardInterrupt:
        clear_line()
        click.echo(
            f"no longer waited for: '{volume}' is brought to '{state['node']}' all the "
            "same",
            err=True,
        )
        raise
    finally:
        clear_line()
    if as_json:
        output.print_json(state)
    else:
        _tell(state)


def _so_far(state: dict[str, Any]) -> str:
    """Return a line on a move under way."""
    label = f"{state['volume']} to {state['node']}, round {len(state['rounds']) + 1}"
    if not state["total_bytes"]:
        return label
    done, total = output.size(state["done_bytes"]), output.size(state["total_bytes"])
    left = "" if state["left_s"] is None else f", {state['left_s']} s left"
    return f"{label}: {done} of {total}{left}"


def _tell(state: dict[str, Any]) -> None:
    """Print what came of it, and what to do now."""
    volume, node, last = state["volume"], state["node"], state["rounds"][-1]
    carried = f"{output.size(last['carried_bytes'])} in {last['duration_s']:.1f} s"
    click.echo(f"node '{node}' has commit {last['commit']} of '{volume}'")
    if not state["mounted"]:
        click.echo(f"it is mounted nowhere: start its container on '{node}'")
        return
    click.echo(f"the last of {len(state['rounds'])} rounds carried {carried}")
    if not state["small"]:
        click.echo(
            f"'{volume}' is written to faster than it is carried: the switch will take "
            "about as long as that",
            err=True,
        )
    click.echo(
        "now let the scheduler switch: stop the container on "
        f"'{state['owner']}' and start it on '{node}'"
    )
