"""`remora csi`: the driver for Kubernetes, Nomad and Swarm's cluster volumes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from backends.system import libc
from plugin.cli.context import Context, pass_context
from plugin.errors import ConfigError

_ROOTS = ("/var/lib/kubelet", "/data/published")


def _socket(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> Path:
    """Return the path in *text*: one as it is, or an address that begins with unix:."""
    path = (text or "").removeprefix("unix:")
    path = path.removeprefix("//")
    if not path.startswith("/"):
        raise click.BadParameter("must be the path of a socket, unix:///PATH or /PATH")
    return Path(path)


def _directories(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> list[Path]:
    """Return *given*, which have to be absolute and plain."""
    for each in given:
        if not each.startswith("/") or os.path.normpath(each) != each or each == "/":
            raise click.BadParameter(f"{each} is not the absolute path of a directory")
    return [Path(each) for each in given]


@click.command()
@click.option(
    "--endpoint",
    envvar="CSI_ENDPOINT",
    metavar="unix:///PATH",
    required=True,
    callback=_socket,
    help="The socket at which the scheduler asks  [CSI_ENDPOINT]",
)
@click.option(
    "--node",
    default="",
    metavar="NAME",
    help="What the scheduler calls this node  [default: as its daemon is called]",
)
@click.option(
    "--kubelet-registration",
    "registration",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Tell the kubelet that looks for plugins in DIR.",
)
@click.option(
    "--target-root",
    "roots",
    multiple=True,
    metavar="DIR",
    callback=_directories,
    help="Publish below DIR; repeatable  [default: the kubelet's directory, the "
    "directory of a managed plugin, and that of the socket]",
)
@pass_context
def csi(
    context: Context,
    endpoint: Path,
    node: str,
    registration: Path | None,
    roots: list[Path],
) -> None:
    """
    Run the CSI driver beside the daemon until SIGTERM.

    The daemon does the work, and has to see the same directories.
    """
    try:
        from plugin.api.csi import driver  # noqa: PLC0415 - gRPC is slow to load
        from plugin.api.csi.daemon import Daemon  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            [f"{error.name} is not installed: the driver needs remora[csi]"],
            source="this installation",
        ) from error
    from plugin.cli.client import Client  # noqa: PLC0415 - requests is slow, too
    from plugin.logs import set_up  # noqa: PLC0415

    os.umask(0o077)
    libc.share_memory_between_threads()
    set_up(context.config.log_format)
    settings = driver.Settings(
        endpoint=endpoint,
        node_id=node,
        roots=roots or [*map(Path, _ROOTS), endpoint.parent],
        registration=registration,
    )
    driver.run(settings, Daemon(partial(Client, context.config.control_socket)))
