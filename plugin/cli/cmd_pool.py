"""`remora pool`: make a pool on XFS or btrfs, or give up one that is gone for good."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backends.errors import InvalidRequestError, VolumeBusyError
from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context

if TYPE_CHECKING:
    from plugin.config import Config
    from plugin.pool.directory import PoolDirectory
    from plugin.pool.making import Plan
    from plugin.pool.target import Target


@click.group()
def pool() -> None:
    """Make a pool, or give one up."""


@pool.command()
@click.option(
    "--device",
    type=click.Path(path_type=Path),
    help="An empty block device; it becomes the pool as a whole.",
)
@click.option(
    "--file",
    "image",
    type=click.Path(path_type=Path),
    help="A new file on ext4 or XFS, mounted as a device.",
)
@click.option("--size", default="", metavar="SIZE", help="How large the file is: 50G.")
@click.option(
    "--filesystem",
    type=click.Choice(["xfs", "btrfs"]),
    default="xfs",
    show_default=True,
)
@click.option(
    "--at",
    type=click.Path(path_type=Path),
    help="Where it is mounted  [default: the pool of the configuration]",
)
@click.option(
    "--no-unit",
    is_flag=True,
    help="Mount it now, and print a line for /etc/fstab instead of writing units.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; do nothing.")
@click.option("--yes", is_flag=True, help="Overwrite the device without asking.")
@json_option
@pass_context
def make(  # noqa: PLR0913, PLR0917 - a parameter for each option
    context: Context,
    device: Path | None,
    image: Path | None,
    size: str,
    filesystem: str,
    at: Path | None,
    no_unit: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Make a filesystem that clones files, and mount it as the pool.

    On XFS and btrfs copies share their blocks, and volumes can have a size. On btrfs
    the copies of a volume in a cluster are of one moment: put databases there. It is
    mounted by a unit that the daemon waits for. A device or a directory that is not
    empty is refused, and so is a file that exists. What was done already is left
    alone: after a failure, call it again.

    The room of a file is reserved at once. What it costs, measured against the ext4
    that it lies on: nothing on XFS; on btrfs, whose own cost is in this, large writes
    have 0.3 of the speed, small ones that are flushed 0.4, reads 0.7.
    """
    _require_root()
    target = _target(device, image, size, filesystem)
    make_plan = _planner(context.config, target, at, with_units=not no_unit)
    plan = make_plan()
    if not plan.is_done():
        _require_stopped(context.config)
    if not as_json:
        _show(plan)
    if not plan.is_done() and not dry_run:
        if not yes and plan.state != "whole" and device is not None:
            _confirm(target)
        with _alone(context.config):
            # Time has passed since the look.
            plan = make_plan()
            plan.carry_out(lambda step, done: _report(step, done, quiet=as_json))
    _tell(plan, [] if dry_run else plan.notes(), as_json=as_json)


@pool.command()
@click.argument("pool_id")
@json_option
@pass_context
def forget(context: Context, pool_id: str, as_json: bool) -> None:
    """
    Give up this node's pool POOL_ID, whose disk is dead or was taken away.

    `remora pool make` makes the next one then, or the daemon where it starts without.
    Volumes of which other nodes have copies come back from those; others stay listed,
    and are refused until they are removed. Nothing is written to any disk of a pool.
    """
    from plugin.daemon.node import forget_pool  # noqa: PLC0415

    _require_root()
    config = context.config
    _require_stopped(config)
    with _alone(config):
        here = Path(os.path.realpath(config.pool))
        mount_dir = Path(os.path.realpath(config.mount_dir))
        _directory(config, here).require_gone(pool_id, mount_dir)
        forget_pool(config.state_dir)
    output.print_answer({"forgotten": pool_id}, pool_id, as_json=as_json)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise InvalidRequestError(
            "only root makes a pool, or gives it up", hint="sudo remora pool …"
        )


def _target(
    device: Path | None, image: Path | None, size: str, filesystem: str
) -> Target:
    """Return what the options name; refuse those that do not go together."""
    from backends.options import size_bytes  # noqa: PLC0415 - only this verb needs them
    from plugin.pool.target import KINDS, Target  # noqa: PLC0415

    path = device or image
    if path is None or (device and image):
        raise click.UsageError("give one of --device and --file")
    if bool(image) != bool(size):
        raise click.UsageError("--file needs --size, and a device has its own")
    try:
        count = int(size_bytes(size)) if size else 0
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from None
    if image is None:
        # A link such as those in /dev/disk/by-id.
        return Target(Path(os.path.realpath(path)), KINDS[filesystem], False, count)
    image = Path(os.path.realpath(path.parent)) / path.name
    return Target(image, KINDS[filesystem], True, count)


def _planner(
    config: Config, target: Target, wanted: Path | None, *, with_units: bool
) -> Callable[[], Plan]:
    """Return what looks at the machine and plans."""
    from plugin.pool import making  # noqa: PLC0415
    from plugin.pool.units import Units, systemd_runs  # noqa: PLC0415

    # systemd mounts on no path with a link in it.
    at = Path(os.path.realpath(wanted or config.pool))
    units = Units(target, at) if with_units and systemd_runs() else None

    def plan() -> Plan:
        return making.make_plan(target, _directory(config, at), units)

    return plan


def _directory(config: Config, at: Path) -> PoolDirectory:
    from plugin.daemon.node import note_pool, pool_id_of  # noqa: PLC0415
    from plugin.pool.directory import PoolDirectory  # noqa: PLC0415

    return PoolDirectory(
        at,
        Path(os.path.realpath(config.pool)),
        pool_id_of(config.state_dir),
        partial(note_pool, config.state_dir),
    )


def _require_stopped(config: Config) -> None:
    """Raise VolumeBusyError if the daemon runs, or a call of Docker would start it."""
    from plugin.daemon.node import lock_state  # noqa: PLC0415
    from plugin.pool.units import services_running, systemd_runs  # noqa: PLC0415

    if systemd_runs() and (running := services_running()):
        raise VolumeBusyError(
            f"{' and '.join(running)} is running, and has the pool open",
            hint="stop it first: systemctl stop remora.socket remora.service",
        )
    if (config.state_dir / "lock").exists():
        os.close(lock_state(config.state_dir))


@contextmanager
def _alone(config: Config) -> Iterator[None]:
    """Keep the daemon, and another of these commands, from starting meanwhile."""
    from backends.system.files import keep_private  # noqa: PLC0415
    from plugin.daemon.node import lock_state  # noqa: PLC0415

    keep_private(config.state_dir)
    lock = lock_state(config.state_dir)
    try:
        yield
    finally:
        os.close(lock)


def _confirm(target: Target) -> None:
    if not sys.stdin.isatty():
        raise InvalidRequestError(
            f"nothing was done to {target.path}: nobody can be asked",
            hint="--yes does what --dry-run shows",
        )
    click.confirm(f"Overwrite {target.path}?", abort=True, err=True)


def _show(plan: Plan) -> None:
    click.echo(f"{plan.target} as the pool at {plan.directory.path}:", err=True)
    for step, pending in plan.steps:
        click.echo(f"  {step.name}: {pending or 'nothing to do'}", err=True)


def _tell(plan: Plan, notes: list[str], *, as_json: bool) -> None:
    if as_json:
        output.print_json(_facts(plan, notes))
        return
    for each in notes:
        click.echo(f"note: {each}", err=True)
    click.echo(plan.directory.path)


def _report(step: str, done: bool, *, quiet: bool) -> None:
    if not quiet:
        click.echo(f"{step}: {'done' if done else 'nothing to do'}", err=True)


def _facts(plan: Plan, notes: list[str]) -> dict[str, object]:
    return {
        "target": plan.target.path,
        "filesystem": plan.target.kind.name,
        "size_bytes": plan.target.size_bytes or None,
        "pool": plan.directory.path,
        "steps": {step.name: pending for step, pending in plan.steps},
        "notes": notes,
    }
