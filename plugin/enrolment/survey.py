"""What a new machine is and has, looked at without changing anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from backends.system import clock
from plugin.enrolment.bundle import PYTHON, Bundle, abi
from plugin.enrolment.remote import RemoteMachine
from plugin.membership.nodes import CLOCK_OFFSET_MAX_S

PACKAGES: Final = (
    *("rsync", "openssh-server", "openssh-client", "python3", "nfs-common"),
    "iproute2",
)
# Room for two libraries while they are swapped, Debian's packages, store and logs.
_FREE_KIB_MIN: Final = 512 * 1024
_REACH_TIMEOUT_S: Final = 5
# We do not wait for more endpoints than a sensible etcd has members.
_ENDPOINTS_MAX: Final = 8
_DEADLINE_S: Final = 90.0

# One line for each thing; `remora` is asked only if it is there and can answer.
_SCRIPT: Final = """
command=$1 library=$2; shift 2
say() { printf '%s=%s\\n' "$1" "$2"; }
id= version_id=
if [ -r /etc/os-release ]; then
    id=$(. /etc/os-release; echo "${ID:-} ${ID_LIKE:-}")
    version_id=$(. /etc/os-release; echo "${PRETTY_NAME:-}")
fi
say os "$id"
say os_name "$version_id"
say host_name "$(uname -n)"
say machine_id "$(cat /etc/machine-id 2> /dev/null || true)"
say clock "$(date +%s.%N)"
[ ! -d /run/systemd/system ] || say systemd yes
for directory in /usr /var; do
    say free "$(df -k --output=avail "$directory" | tail -n 1)"
done
for package in "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
    [ "$state" = installed ] || say missing "$package"
done
say bundle "$(cat "$library/bundle" 2> /dev/null || true)"
if [ -x "$command" ]; then
    version=$("$command" --version 2> /dev/null || true)
    say version "${version##* }"
    say volumes "$("$command" ls --json 2> /dev/null | grep -c '^    "name": ' || true)"
fi
if systemctl is-active --quiet remora.service 2> /dev/null; then say active yes; fi
"""
_PYTHON_SCRIPT: Final = """
import socket, sys, sysconfig
print("abi", sysconfig.get_config_var("SOABI"), sep="=")
timeout, port, *endpoints = sys.argv[1:]
try:
    socket.create_server(("", int(port))).close()
except OSError:
    print("port_taken=yes")
for each in endpoints:
    host, _, number = each.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(number)), int(timeout)).close()
        print("reached", each, sep="=")
        break
    except OSError as error:
        print("unreached", f"{each}: {error.strerror or error}", sep="=")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was found; ``abi`` is "" where there is no Python yet."""

    os: str
    os_name: str
    host_name: str
    machine_id: str
    clock_offset_s: float
    systemd: bool
    free_kib: int
    missing: tuple[str, ...]
    bundle: str
    version: str
    volumes: int
    active: bool


def look(machine: RemoteMachine, bundle: Bundle) -> Machine:
    """Return what *machine* is and has."""
    before_s = clock.wall_s()
    found = _Facts(
        machine.run(
            *(_SCRIPT, bundle.command, bundle.library, *PACKAGES),
            what="looking at the machine",
            deadline_s=_DEADLINE_S,
        ).output
    )
    # The script reads the clock early, and the connection takes some of the time.
    middle_s = (before_s + clock.wall_s()) / 2
    return Machine(
        os=found.one("os"),
        os_name=found.one("os_name") or "an unknown system",
        host_name=found.one("host_name"),
        machine_id=found.one("machine_id"),
        clock_offset_s=float(found.one("clock") or middle_s) - middle_s,
        systemd=bool(found.one("systemd")),
        free_kib=min((int(each) for each in found.all("free")), default=0),
        missing=tuple(found.all("missing")),
        bundle=found.one("bundle"),
        version=found.one("version"),
        volumes=int(found.one("volumes") or 0),
        active=bool(found.one("active")),
    )


def faults(found: Machine, bundle: Bundle, *, own_machine_id: str) -> list[str]:
    """Return why this cannot become a node, each with what to do."""
    told = []
    if "debian" not in found.os.split():
        told.append(f"it runs {found.os_name}, and Remora needs Debian 12")
    if not found.systemd:
        told.append(
            "systemd does not run it: use the managed plugin "
            "(docs/guides/managed-plugin.md)"
        )
    if found.machine_id and found.machine_id == own_machine_id:
        told.append(
            "it is this machine, or a copy of its disk (same /etc/machine-id): for a "
            "copy, remove that file there, call systemd-machine-id-setup and reboot"
        )
    if found.free_kib < _FREE_KIB_MIN:
        told.append(
            f"{found.free_kib // 1024} MiB are free in /usr or /var: at least "
            f"{_FREE_KIB_MIN // 1024} MiB are needed"
        )
    if _numbers(found.version) > _numbers(bundle.version):
        told.append(
            f"it has Remora {found.version}, newer than {bundle.version} here: update "
            "this node first"
        )
    return told


def warnings(found: Machine) -> list[str]:
    """Return what is not right, but no reason to stop."""
    if abs(found.clock_offset_s) <= CLOCK_OFFSET_MAX_S:
        return []
    way = "ahead of" if found.clock_offset_s > 0 else "behind"
    told = (
        f"its clock is {abs(found.clock_offset_s):.0f} s {way} this node's: "
        "certificates and logs need the right time (apt-get install chrony)"
    )
    return [told]


def python_faults(
    machine: RemoteMachine, found: Machine, *, port: int, endpoints: Sequence[str]
) -> list[str]:
    """Return why Remora could not run there, as Python on it sees it."""
    seen = _Facts(
        machine.run(
            f'exec {PYTHON} -I -c "$@"',
            *(_PYTHON_SCRIPT, str(_REACH_TIMEOUT_S), str(port)),
            *(urlsplit(each).netloc for each in endpoints[:_ENDPOINTS_MAX]),
            what="asking its Python",
            deadline_s=_DEADLINE_S,
        ).output
    )
    told = []
    if seen.one("abi") != abi():
        told.append(
            f"its Python is {seen.one('abi')}, and what is copied from here needs "
            f"{abi()}: both need the same version and processor; on other machines "
            "install Remora with packaging/install"
        )
    if seen.one("port_taken") and not found.active:
        told.append(f"port {port} is taken, where peers should find Remora: peer_port")
    if not seen.all("reached"):
        told.append(
            "it reaches none of the cluster's etcd endpoints "
            f"({', '.join(seen.all('unreached'))}): are these addresses that it can "
            "use, and do firewalls let it?"
        )
    return told


class _Facts:
    """Lines of KEY=VALUE, a key on one or more of them."""

    def __init__(self, text: str) -> None:
        self._lines = [line.partition("=") for line in text.splitlines()]

    def all(self, key: str) -> list[str]:
        return list(self._values(key))

    def one(self, key: str) -> str:
        return next(self._values(key), "")

    def _values(self, key: str) -> Iterator[str]:
        return (value.strip() for name, _, value in self._lines if name == key)


def _numbers(version: str) -> list[int]:
    """Return the numbers of *version*, to be compared; one without is the oldest."""
    return [int(part) for part in version.split(".") if part.isdigit()]
