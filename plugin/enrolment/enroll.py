"""
Making another machine a node of this node's cluster: a look, then a plan, then steps.

Nothing on the machine is changed before all reasons to refuse it have been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plugin.config import Config
from plugin.enrolment import survey
from plugin.enrolment.bundle import Bundle
from plugin.enrolment.configuration import (
    CONFIGURATION,
    NodeFiles,
    difference,
    in_cluster,
    is_blank,
    node_files,
)
from plugin.enrolment.remote import RemoteMachine
from plugin.enrolment.steps import (
    Configure,
    InstallBundle,
    InstallPackages,
    Start,
    Step,
    Verify,
)
from plugin.enrolment.survey import Machine
from plugin.errors import EnrolmentError
from plugin.membership.nodes import machine_id

Nodes = Callable[[], Iterable[Mapping[str, Any]]]


class ConfiguredError(EnrolmentError):
    """The machine has settings that would be lost; ``difference`` shows them."""

    def __init__(self, machine: str, conflicts: list[str], difference: str) -> None:
        super().__init__(
            f"{machine} is configured otherwise: {'; '.join(conflicts)}",
            hint="--force overwrites it",
        )
        self.difference = difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """
    What the new node is to be.

    If *name* is "", it gets its machine's; *force* overwrites its configuration.
    """

    name: str = ""
    address: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    The steps with what each has to do ("" is nothing), and warnings for people.

    *difference* shows how the present configuration differs from the new one.
    """

    node_name: str
    found: Machine
    warnings: list[str]
    difference: str
    configuration: str
    steps: list[tuple[Step, str]]
    _late_check: Callable[[], None]

    def carry_out(self, report: Callable[[str, str], None]) -> None:
        """
        Do every step, telling *report* its name and what was done.

        Raises:
            EnrolmentError: a step failed; the same enrolment again goes on from there.

        """
        for step, pending in self.steps:
            if pending:
                step.do()
            report(step.name, pending)
            if step.name == InstallPackages.name and "python3" in self.found.missing:
                self._late_check()


def require_cluster(config: Config) -> None:
    """Raise an error if this node is in no cluster that another one could join."""
    if not config.cluster.etcd:
        raise EnrolmentError(
            "this node is in no cluster: [cluster] names no etcd",
            hint="remora cluster join --etcd URL makes it one's first node",
        )


def make_plan(
    machine: RemoteMachine, wish: Wish, *, config: Config, bundle: Bundle, nodes: Nodes
) -> Plan:
    """
    Return what has to be done to *machine*.

    Raises:
        EnrolmentError: it cannot become a node, or not with this name.
        InvalidRequestError: the wished name or address cannot be one.

    """
    found = survey.look(machine, bundle)
    name = wish.name or found.host_name
    files = node_files(config, name=name, address=wish.address)
    own = machine_id()
    faults = survey.faults(found, bundle, own_machine_id=own)
    faults += _name_faults(name, found, nodes)

    def python_faults() -> list[str]:
        return survey.python_faults(
            machine,
            found,
            port=config.cluster.peer_port,
            endpoints=config.cluster.etcd,
        )

    if not faults and "python3" not in found.missing:
        faults += python_faults()
    _refuse(machine, faults)
    there = machine.read_file(CONFIGURATION)
    changed = changed_files(machine, files, there, found, force=wish.force)
    steps: list[Step] = [
        InstallPackages(machine, found.missing),
        InstallBundle(machine, bundle, found.bundle, found.version),
        Configure(machine, files, changed),
    ]
    planned = [(step, step.pending()) for step in steps]
    changing = any(pending for _, pending in planned)
    last: list[Step] = [
        Start(machine, bundle.library, changing),
        Verify(machine, bundle.command, name, found.machine_id, nodes),
    ]
    planned += [(step, step.pending()) for step in last]
    return Plan(
        node_name=name,
        found=found,
        warnings=survey.warnings(found),
        difference=difference(there, files.configuration) if there else "",
        configuration=files.configuration,
        steps=planned,
        _late_check=lambda: _refuse(machine, python_faults()),
    )


def _refuse(machine: RemoteMachine, faults: list[str]) -> None:
    if faults:
        raise EnrolmentError(
            f"{machine.name} cannot become a node: {'; '.join(faults)}",
            hint="put that right and repeat the command",
        )


def _name_faults(name: str, found: Machine, nodes: Nodes) -> list[str]:
    """Return why the cluster cannot have a node of that *name* on this machine."""
    for each in nodes():
        if each["name"] != name or each["machine_id"] == found.machine_id:
            continue
        if each["alive"]:
            return [f"the cluster has a node '{name}': --name gives it another one"]
        told = (
            f"the cluster has a node '{name}', which is down: --name gives another "
            f"name; or, if it is gone for good, remora node rm {name}"
        )
        return [told]
    return []


def changed_files(
    machine: RemoteMachine,
    files: NodeFiles,
    there: str | None,
    found: Machine,
    *,
    force: bool,
) -> list[str]:
    """Return the paths to write; raise an error if that would overwrite settings."""
    conflicts = []
    changed = []
    for path, content in files.secrets.items():
        digest = machine.digest_of(path)
        if digest != _digest(content):
            changed.append(path)
            if digest:
                conflicts.append(f"{path} is another one")
    if there != files.configuration:
        changed.append(CONFIGURATION)
        if there is not None and not is_blank(there):
            conflicts.append(f"{CONFIGURATION} is another one")
    if found.volumes and not in_cluster(there):
        conflicts.append(
            f"it has {found.volumes} volumes of its own, which the cluster does not "
            "know; remora cluster join, there, takes them along"
        )
    if conflicts and not force:
        raise ConfiguredError(
            machine.name, conflicts, difference(there or "", files.configuration)
        )
    return changed


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
