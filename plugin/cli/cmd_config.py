"""`remora config check` and `remora completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context
from plugin.config import DEFAULT_PATH, file_faults
from plugin.errors import ConfigError


@click.group()
def config() -> None:
    """Work with the configuration."""


@config.command()
@json_option
@pass_context
def check(context: Context, as_json: bool) -> None:
    """Check the configuration file and the environment; tell every fault."""
    # They need the backends.
    from plugin.daemon.backends import profile_faults  # noqa: PLC0415
    from plugin.membership.settings import secret_faults  # noqa: PLC0415

    path = context.config_path or DEFAULT_PATH
    try:
        used = context.config
        faults = profile_faults(used) + secret_faults(used.cluster)
        faults += file_faults(context.config_path)
    except ConfigError as error:
        faults = error.faults
    if as_json:
        output.print_json({"source": str(path), "faults": faults})
    else:
        for fault in faults:
            click.echo(f"fault: {fault}", err=True)
        if not faults:
            source = path if path.exists() else "the defaults"
            click.echo(f"configuration is good: {source}")
    if faults:
        raise SystemExit(ConfigError.exit_code)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    root = context.find_root().command
    click.echo(found(root, {}, "remora", "_REMORA_COMPLETE").source())
