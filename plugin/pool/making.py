"""
Making a pool: a look, then a plan, then steps.

Nothing is changed before all reasons to refuse it have been checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.errors import InvalidRequestError
from plugin.pool import steps
from plugin.pool.directory import PoolDirectory
from plugin.pool.target import State, Target, check_path
from plugin.pool.units import Units, direct_io, fstab_line


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps, with what each has to do ("" is nothing) as far as is known now."""

    target: Target
    directory: PoolDirectory
    state: State
    steps: list[tuple[steps.Step, str]]
    units: Units | None

    def is_done(self) -> bool:
        """Return whether nothing is to be done."""
        return not any(pending for _, pending in self.steps)

    def carry_out(self, on_step: Callable[[str, bool], None]) -> None:
        """
        Do what is pending, telling *on_step* each step's name and whether it was.

        What fails gives a file's room back: it is not yet a pool.
        """
        try:
            for step, pending in self.steps:
                if pending:
                    step.do()
                on_step(step.name, bool(pending))
        except BaseException:
            self.target.give_up()
            raise

    def notes(self) -> list[str]:
        """Return what people should know of it, or have to do, after it."""
        target, at = self.target, self.directory.path
        found = []
        if self.units is not None:
            found.append("systemctl start remora.socket remora.service")
        else:
            line = fstab_line(target, at)
            found.append(f"to have it mounted at each start, add to /etc/fstab: {line}")
            if target.in_file:
                found.append(f"after each mount, for its speed: {direct_io(at)}")
        if at != self.directory.present:
            found.append(
                f'the daemon\'s pool is {self.directory.present}: set pool = "{at}"'
            )
        if target.kind.name == "btrfs":
            found.append(f"for volumes with a size: btrfs quota enable {at}")
        elif not target.has_quotas():
            found.append("this kernel has no quotas on XFS: no volume can have a size")
        return found


def make_plan(target: Target, directory: PoolDirectory, units: Units | None) -> Plan:
    """
    Return what is to be done.

    Raises:
        InvalidRequestError: it cannot be, or would cost somebody something.
        BackendError: the target cannot be read.

    """
    check_path(directory.path)
    if target.path.is_relative_to(directory.path):
        raise InvalidRequestError(f"{target.path} lies in the pool itself")
    is_mounted = target.is_at(directory.path)
    state: State = "whole" if is_mounted else target.state()
    if not is_mounted:
        directory.check()
        if state != "whole" and directory.missing():
            raise InvalidRequestError(
                f"this node's pool {directory.known} is not at {directory.present}: "
                "its disk is not mounted",
                hint="mount it; if it is gone for good: docs/guides/operations.md",
            )
    if units is not None:
        units.check()
    found: list[steps.Step] = [
        steps.Reserve(target, state),
        steps.Format(target, state),
        steps.Fill(target, state, directory, is_mounted),
        steps.Clear(directory, is_mounted),
        steps.WriteUnits(units, state),
        steps.Mount(target, directory, units, is_mounted),
    ]
    return Plan(
        target,
        directory,
        state,
        [(each, each.pending()) for each in found],
        units,
    )
