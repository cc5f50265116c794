"""
The steps that make a machine a node, in their order.

Each says what is still to be done, and does it; what is done already is left alone. So
an enrolment that failed, or was broken off anywhere, is finished by repeating it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from backends.errors import RemoraError
from backends.system import clock
from plugin.enrolment.bundle import UNITS, Bundle
from plugin.enrolment.configuration import CONFIGURATION, NodeFiles
from plugin.enrolment.remote import RemoteMachine
from plugin.errors import EnrolmentError

_APT_DEADLINE_S: Final = 900.0
_UNPACK_DEADLINE_S: Final = 300.0
# Stopping may take 120 s, starting 90 s: systemd/remora.service.
_START_DEADLINE_S: Final = 240.0
VERIFY_DEADLINE_S: Final = 60.0
_VERIFY_INTERVAL_S: Final = 1.0
_STATUS_DEADLINE_S: Final = 15.0
# apt waits for another apt; old lists may do if new ones cannot be fetched. It must not
# remove other packages for the sake of ours: that is for a person to decide.
_APT: Final = """
export DEBIAN_FRONTEND=noninteractive
lock=DPkg::Lock::Timeout=120
apt-get -qq -o "$lock" update || true
exec apt-get -qq -y -o "$lock" -o DPkg::Options::=--force-confold \
    --no-remove --no-install-recommends install "$@" > /dev/null
"""
# The library is unpacked and tried beside the old one, then swapped in. The mark comes
# last: without it the next enrolment does all this again.
_UNPACK: Final = """
library=$1 command=$2 digest=$3
umask 022
new=$library.new
trap 'rm -rf -- "$new"' EXIT
rm -rf -- "$new"
mkdir -p -- "$new"
tar -xz -C "$new"
"$new/library/bin/python3" -I -B -c 'import paramiko, plugin.daemon.daemon'
"$new/library/bin/python3" -m compileall -q -s "$new/library" -p "$library" \
    "$new/library/lib"
rm -rf -- "$library.old"
[ ! -e "$library" ] || mv -- "$library" "$library.old"
mv -- "$new/library" "$library"
rm -rf -- "$library.old"
cd "$new/files"
find . ! -type d | while IFS= read -r file; do
    mkdir -p -- "/$(dirname -- "$file")"
    cp -P --preserve=mode,timestamps --remove-destination -- "$file" "/$file"
done
completions=${command%/bin/remora}/share/bash-completion/completions
mkdir -p -- "$completions"
"$command" completion bash > "$completions/remora"
systemctl daemon-reload
sync -f "$library"
printf %s "$digest" > "$library/bundle"
"""
# A daemon that started before the files changed has to start again.
_RUNS: Final = """
for unit in "$@"; do
    systemctl is-enabled --quiet "$unit" || exit 1
    systemctl is-active --quiet "$unit" || exit 1
done
started=$(systemctl show --timestamp=unix --value -p ExecMainStartTimestamp "$1")
[ -n "$started" ] || exit 1
[ -z "$(find "$library/bundle" /etc/remora -newerct "$started")" ]
"""
_START: Final = """
systemctl daemon-reload
systemctl reset-failed "$@" 2> /dev/null || true
systemctl --quiet enable "$@"
systemctl start "$2"
systemctl restart "$1"
"""
_LAST_WORDS: Final = (
    "journalctl --quiet --no-pager --lines=1 --output=cat _SYSTEMD_UNIT=remora.service"
)


class Step(Protocol):
    """One step; `name` is what it is called in the plan."""

    @property
    def name(self) -> str:
        """Return what people and programs know it by."""

    def pending(self) -> str:
        """Return what is to be done, "" if nothing is; the machine is not changed."""

    def do(self) -> None:
        """Do it; raise an error if it could not be done."""


@dataclass(frozen=True, slots=True)
class InstallPackages:
    """Debian's packages that are *missing*."""

    machine: RemoteMachine
    missing: Sequence[str]
    name: ClassVar[str] = "packages"

    def pending(self) -> str:
        """Return the packages to install."""
        return f"apt-get install {' '.join(self.missing)}" if self.missing else ""

    def do(self) -> None:
        """Install them."""
        try:
            self.machine.run(
                *(_APT, *self.missing), what="apt-get", deadline_s=_APT_DEADLINE_S
            )
        except EnrolmentError as error:
            raise EnrolmentError(
                error.cause,
                hint=f"does this work there? apt-get install {' '.join(self.missing)}",
            ) from error


@dataclass(frozen=True, slots=True)
class InstallBundle:
    """Remora itself, unless what is *installed* there is the same."""

    machine: RemoteMachine
    bundle: Bundle
    installed: str
    version: str
    name: ClassVar[str] = "remora"

    def pending(self) -> str:
        """Return which version is installed, and in place of which."""
        if self.installed == self.bundle.digest:
            return ""
        mib = self.bundle.size_bytes() / 2**20
        instead = f", in place of {self.version}" if self.version else ""
        return f"copy Remora {self.bundle.version} ({mib:.0f} MiB){instead}"

    def do(self) -> None:
        """Copy it, see that it can run, put it in place."""
        bundle = self.bundle
        bundle.file.seek(0)
        self.machine.run(
            *(_UNPACK, bundle.library, bundle.command, bundle.digest),
            what="installing Remora",
            deadline_s=_UNPACK_DEADLINE_S,
            stdin=bundle.file,
        )


@dataclass(frozen=True, slots=True)
class Configure:
    """The configuration and the files that it names, of which some are *changed*."""

    machine: RemoteMachine
    files: NodeFiles
    changed: Sequence[str]
    name: ClassVar[str] = "configuration"

    def pending(self) -> str:
        """Return the files to write."""
        return f"write {', '.join(self.changed)}" if self.changed else ""

    def do(self) -> None:
        """Write them; the one that names the others comes last."""
        for path in self.changed:
            if path != CONFIGURATION:
                self.machine.write_file(path, self.files.secrets[path], mode=0o600)
        if CONFIGURATION in self.changed:
            text = self.files.configuration.encode()
            self.machine.write_file(CONFIGURATION, text, mode=0o644)


@dataclass(frozen=True, slots=True)
class Start:
    """The daemon, with what was written; *changing*: earlier steps write something."""

    machine: RemoteMachine
    library: str
    changing: bool
    name: ClassVar[str] = "start"

    def pending(self) -> str:
        """Return that it has to be started, "" if it runs with all present files."""
        done = self.machine.run(
            f"library=$1; shift; {_RUNS}",
            *(self.library, *UNITS),
            what="asking systemd",
            allowed=range(256),
        )
        if done.exit_status == 0 and not self.changing:
            return ""
        return f"systemctl enable and (re)start {' '.join(UNITS)}"

    def do(self) -> None:
        """Start it, or start it again."""
        try:
            self.machine.run(
                *(_START, *UNITS),
                what="starting Remora",
                deadline_s=_START_DEADLINE_S,
            )
        except EnrolmentError as error:
            said = self.machine.run(_LAST_WORDS, what="reading its log").output.strip()
            raise EnrolmentError(
                f"{error.cause}; Remora said: {said or 'nothing'}",
                hint="journalctl -u remora, there, shows all",
            ) from error


@dataclass(frozen=True, slots=True)
class Verify:
    """Check that this cluster sees the node *node_name* with *machine_id* live."""

    machine: RemoteMachine
    command: str
    node_name: str
    machine_id: str
    nodes: Callable[[], Iterable[Mapping[str, Any]]]
    name: ClassVar[str] = "verify"

    def pending(self) -> str:
        """Return what is looked for."""
        return f"wait for node '{self.node_name}' to live in the cluster"

    def do(self) -> None:
        """Return when its daemon reports no fault, and our cluster sees it live."""
        deadline = clock.Deadline(VERIFY_DEADLINE_S)
        while fault := self._fault() or self._absence():
            if deadline.passed():
                raise EnrolmentError(
                    f"{self.machine.name}: after {VERIFY_DEADLINE_S:.0f} s {fault}",
                    hint="remora status and journalctl -u remora, there, show more; "
                    "then repeat the command",
                )
            clock.pause(_VERIFY_INTERVAL_S)

    def _fault(self) -> str:
        """Return the fault that the daemon there reports, "" if there is none."""
        done = self.machine.run(
            '"$1" status --json',
            self.command,
            what="asking Remora",
            deadline_s=_STATUS_DEADLINE_S,
            allowed=range(256),
        )
        if done.exit_status != 0:
            return f"Remora does not answer there: {done.errors.strip()}"
        try:
            node = json.loads(done.output)["node"]
            name, health = str(node["name"]), str(node["health"])
        except (ValueError, KeyError, TypeError):
            return "Remora's answer there cannot be read"
        if name != self.node_name:
            return f"Remora there is node '{name}', not '{self.node_name}'"
        return "" if health == "ok" else f"Remora there says: {health}"

    def _absence(self) -> str:
        """Return the fault that this node's cluster does not see it live, "" if so."""
        wanted = self.node_name, self.machine_id
        try:
            for each in self.nodes():
                if each["alive"] and (each["name"], each["machine_id"]) == wanted:
                    return ""
        except RemoraError as error:
            # Our own daemon is busy or restarts; it is asked again until the deadline.
            if not error.transient:
                raise
        return (
            f"Remora runs there, but the cluster sees no node '{self.node_name}' live"
        )
