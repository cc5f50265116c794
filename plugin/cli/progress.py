"""Waiting for a copy that the daemon makes, while showing how far it is."""

from __future__ import annotations

import sys
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import click

from backends.system.aside import begun
from plugin.cli import output
from plugin.cli.context import Context


def call_with_progress(
    context: Context,
    path: str,
    body: dict[str, Any],
    *,
    label: str,
    copy: str,
    quiet: bool,
) -> Any:
    """
    Return the answer to POST *path*; *copy* is the daemon's name for what is copied.

    Breaking off (Ctrl-C) ends the call, and with it the copying. Nothing is shown if
    *quiet*, or if standard error is no terminal.
    """
    call = partial(context.client.call, "POST", path, body, read_timeout_s=None)
    answer = begun(call, name="copy")
    if not quiet and sys.stderr.isatty():
        _show(context, answer, label, copy)
    return answer.result()


def _show(context: Context, copying: Future[Any], label: str, copy: str) -> None:
    from plugin.cli.client import Client  # noqa: PLC0415 - requests is slow

    # A session of its own: the other one waits in the copying thread.
    client = Client(context.config.control_socket)
    while not wait([copying], 0.5).done:
        state = client.call("GET", "/v1/status")["copies"].get(copy)
        if state is not None:
            size = output.size(state["copied_bytes"])
            show_line(f"{label}: {state['files']} files, {size}")
    clear_line()


def show_line(text: str) -> None:
    """Show *text* in place of the last line, if standard error is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r{text} \033[K", nl=False, err=True)


def clear_line() -> None:
    """Take away what `show_line` has shown."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
