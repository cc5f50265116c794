"""`remora serve`: the daemon, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path

import click

from backends.system import libc
from plugin.cli.context import Context, pass_context
from plugin.config import DEFAULT_PATH, file_faults
from plugin.errors import ConfigError


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="As remora --config.")
@pass_context
def serve(context: Context, config: Path | None) -> None:
    """
    Run the daemon until SIGTERM.

    It logs to standard output, tells systemd when it is ready and takes its plugin
    socket from it if there is one. Docker finds it as the volume driver `remora`.
    """
    from plugin.daemon.daemon import Daemon  # noqa: PLC0415 - Flask and waitress are slow
    from plugin.logs import set_up  # noqa: PLC0415

    if config is not None:
        context.config_path = config
    if faults := file_faults(context.config_path):
        raise ConfigError(faults, source=str(context.config_path or DEFAULT_PATH))
    # Whoever starts it by hand has another one than systemd gives it.
    os.umask(0o077)
    libc.share_memory_between_threads()
    set_up(context.config.log_format)
    Daemon(context.config).run()
