"""
The `remora` command.

Exit codes: 0 done; 1 a fault of ours; 2 usage; 10 invalid request; 11 no such volume;
12 busy; 13 store; 14 not the owner; 15 storage; 16 deadline; 17 configuration; 18
exists; 19 daemon does not answer; 20 engine; 21 snapshot exists; 22 no such snapshot;
23 another node does not answer; 24 it refuses; 25 no such node; 26 fencing; 27 node
conflict; 28 enrolment; 29 not known yet; 30 published otherwise; 31 for one writer; 32
size out of range; 33 no room; 34 storage is silent; 35 in use on another node;
`doctor` 1 if a check failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from backends.errors import RemoraError
from plugin import __version__
from plugin.cli import (
    cmd_cluster,
    cmd_config,
    cmd_csi,
    cmd_doctor,
    cmd_import,
    cmd_move,
    cmd_node,
    cmd_pool,
    cmd_quarantine,
    cmd_replica,
    cmd_serve,
    cmd_share,
    cmd_snapshot,
    cmd_volume,
    cmd_volumes,
    cmd_wait,
)
from plugin.cli.context import Context


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="remora")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="REMORA_CONFIG",
    help="Configuration file  [default: /etc/remora/remora.toml, if it exists]",
)
@click.pass_context
def remora(context: click.Context, config: Path | None) -> None:
    """
    Docker volumes that travel with their containers.

    `remora serve` is the daemon; every other verb talks to it, as root, through its
    control socket. With --json a verb prints JSON. `remora VERB --help` says more.
    """
    context.obj = Context(config)


for command in (
    cmd_serve.serve,
    cmd_csi.csi,
    cmd_volumes.list_volumes,
    cmd_volumes.inspect,
    cmd_volumes.status,
    cmd_wait.wait,
    cmd_volumes.create,
    cmd_volumes.remove,
    cmd_snapshot.snapshot,
    cmd_snapshot.clone,
    cmd_quarantine.quarantine,
    cmd_import.import_volume,
    cmd_volumes.repair,
    cmd_volume.volume,
    cmd_move.move,
    cmd_replica.replica,
    cmd_share.share,
    cmd_node.node,
    cmd_cluster.cluster,
    cmd_pool.pool,
    cmd_doctor.doctor,
    cmd_config.config,
    cmd_config.completion,
):
    remora.add_command(command)


def main() -> None:
    """Run the command; an error is one line on standard error and its exit code."""
    try:
        remora.main(prog_name="remora", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except RemoraError as error:
        click.echo(f"remora: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # `remora ls | head` is no error; nothing more can be written anywhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
