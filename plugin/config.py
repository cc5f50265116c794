"""
The configuration: a TOML file, then the environment, checked whole.

    [daemon]
    pool = "/srv/remora"
    [profiles.fast]
    interval = "2s"

Every key but those of profiles is also read from ``REMORA_<KEY>``, one of ``[swarm]``
from ``REMORA_SWARM_<KEY>``. A variable wins unless it is empty: the managed plugin
cannot leave variables out. All faults are told at once, so that people need not restart
the service once for each of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from backends.options import ALL_OPTIONS
from backends.registry import TRAITS
from backends.system import files
from backends.system.decoding import from_objects
from plugin.config_checks import (
    check_cluster,
    check_limit,
    check_together,
    syntax_fault,
    value_fault,
)
from plugin.errors import ConfigError
from plugin.limits import DISUSE_GRACE_S, LONG_DEADLINE_S

DEFAULT_PATH: Final = Path("/etc/remora/remora.toml")

Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=LONG_DEADLINE_S)]
Grace = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# Of 8 s half is the margin. In the other half come two keepalives, and the failsafe.
LeaseTtl = Annotated[float, msgspec.Meta(ge=8, le=300)]
Nice = Annotated[int, msgspec.Meta(ge=0, le=19)]
FreezeMax = Annotated[float, msgspec.Meta(ge=0, le=86400)]
BootWait = Annotated[float, msgspec.Meta(ge=0, le=3600)]
MountWait = Annotated[float, msgspec.Meta(ge=0, le=60)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """
    The section [cluster]; without endpoints of etcd the node is alone.

    ``etcd_insecure`` lets endpoints be http:// that are on other machines.
    ``peer_address`` is what peers are told, "" for the addresses that are found. A
    Mount waits up to ``mount_wait_s`` for the owner to let go. ``failsafe`` lets an
    owner go on while etcd is away, as long as all members agree. A dead node's copies
    are made elsewhere after ``replace_after``, never if it is None.
    """

    etcd: tuple[str, ...] = ()
    etcd_insecure: bool = False
    etcd_prefix: str = "/remora/"
    etcd_user: str = ""
    etcd_password_file: Path | None = None
    etcd_ca_file: Path | None = None
    etcd_certificate_file: Path | None = None
    etcd_key_file: Path | None = None
    node_name: str = ""
    peer_address: str = ""
    peer_port: int = 7424
    lease_ttl_s: float = 15.0
    freeze_max_s: float = 60.0
    mount_wait_s: float = 20.0
    failsafe: bool = True
    replace_after: str | None = "1800s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationConfig:
    """
    The section [replication]: what transfers to and from this node may take.

    ``bandwidth_limit_bytes`` is of each transfer from here, in a second; 0 is none.
    """

    bandwidth_limit_bytes: int = 0
    nice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """The section [swarm]; ``labels``: keep labels of the swarm's nodes."""

    labels: bool = False
    engine_socket: Path = Path("/run/docker.sock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """
    The section [tuning]: how often the daemon does its work in the background.

    Only our own tests may set it: our guarantees hold for the default values alone.
    All nodes of a cluster need the same ``hold_s``.
    """

    reconcile_interval_s: float = 10.0
    # How often copies of unused volumes are brought in step.
    follow_interval_s: float = 10.0
    # How often all names of a mounted volume are looked at.
    look_interval_s: float = 60.0
    # How long a member that has agreed to it keeps from promising a volume to others.
    hold_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The daemon's configuration; every path is absolute."""

    plugin_socket: Path = Path("/run/docker/plugins/remora.sock")
    control_socket: Path = Path("/run/remora/control.sock")
    state_dir: Path = Path("/var/lib/remora")
    pool: Path = Path("/var/lib/remora/pool")
    mount_dir: Path = Path("/var/lib/remora/mounts")
    log_format: Literal["auto", "console", "json"] = "auto"
    metrics_address: str = ""
    mount_deadline_s: float = LONG_DEADLINE_S
    disuse_grace_s: float = DISUSE_GRACE_S
    # So long after the machine's start a Mount waits for what does not answer yet.
    boot_wait_s: float = 300.0
    # Containers whose start failed for a volume of ours are started, when that can be.
    start_containers: bool = False
    # The options that callers of Docker's API may name.
    allowed_options: tuple[str, ...] = (ALL_OPTIONS,)
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)
    tuning: Tuning = field(default_factory=Tuning)


_DAEMON_TYPES: Final[Mapping[str, Any]] = {
    "plugin_socket": str,
    "control_socket": str,
    "state_dir": str,
    "pool": str,
    "mount_dir": str,
    "log_format": Literal["auto", "console", "json"],
    "metrics_address": str,
    "mount_deadline_s": Seconds,
    "disuse_grace_s": Grace,
    "boot_wait_s": BootWait,
    "start_containers": bool,
    "allowed_options": tuple[str, ...],
}
_CLUSTER_TYPES: Final[Mapping[str, Any]] = {
    "etcd": tuple[str, ...],
    "etcd_insecure": bool,
    "etcd_prefix": str,
    "etcd_user": str,
    "etcd_password_file": str,
    "etcd_ca_file": str,
    "etcd_certificate_file": str,
    "etcd_key_file": str,
    "node_name": str,
    "peer_address": str,
    "peer_port": Port,
    "lease_ttl_s": LeaseTtl,
    "freeze_max_s": FreezeMax,
    "mount_wait_s": MountWait,
    "failsafe": bool,
    "replace_after": str,
}
_REPLICATION_TYPES: Final[Mapping[str, Any]] = {"bandwidth_limit": str, "nice": Nice}
_SWARM_TYPES: Final[Mapping[str, Any]] = {"labels": bool, "engine_socket": str}
_TUNING_TYPES: Final[Mapping[str, Any]] = dict.fromkeys(Tuning.__slots__, Seconds)
# The prefixes of the environment's variables, by section.
_PREFIXES: Final = {
    "daemon": "REMORA_",
    "cluster": "REMORA_",
    "replication": "REMORA_",
    "swarm": "REMORA_SWARM_",
    "tuning": "REMORA_TUNING_",
}
# Without it [tuning] is refused.
_TESTS_VARIABLE: Final = "REMORA_TESTS"
_PATHS: Final = ("plugin_socket", "control_socket", "state_dir", "pool", "mount_dir")
_CLUSTER_PATHS: Final = (
    "etcd_password_file",
    "etcd_ca_file",
    "etcd_certificate_file",
    "etcd_key_file",
)
_SECTIONS: Final = ("daemon", "cluster", "replication", "swarm", "tuning", "profiles")


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """
    Return the configuration of *path* (or of `DEFAULT_PATH`, if it exists).

    Raises:
        ConfigError: with every fault that was found.

    """
    faults: list[str] = []
    source = path or DEFAULT_PATH
    raw = _read(source, required=path is not None, faults=faults)
    faults.extend(
        f"unknown section [{section}] (valid: [daemon], [cluster], [replication], "
        "[swarm], [profiles.NAME])"
        for section in raw
        if section not in _SECTIONS
    )
    values = _values("daemon", _DAEMON_TYPES, raw, environment, faults)
    _make_paths(values, _PATHS, faults)
    cluster = _values("cluster", _CLUSTER_TYPES, raw, environment, faults)
    _make_paths(cluster, _CLUSTER_PATHS, faults)
    replication = _values("replication", _REPLICATION_TYPES, raw, environment, faults)
    check_limit(replication, faults)
    swarm = _values("swarm", _SWARM_TYPES, raw, environment, faults)
    _make_paths(swarm, ("engine_socket",), faults)
    tuning = _values("tuning", _TUNING_TYPES, raw, environment, faults)
    if ("tuning" in raw or tuning) and environment.get(_TESTS_VARIABLE) != "1":
        faults.append("[tuning] is for the tests of Remora itself: leave it out")
    profiles = _profiles(raw.get("profiles", {}), faults)
    _follow_state_dir(values)
    usual = Config()
    sockets = {
        "plugin_socket": usual.plugin_socket,
        "control_socket": usual.control_socket,
    }
    check_together({**sockets, **values}, faults)
    check_cluster(cluster, faults)
    if swarm.get("labels") and not cluster.get("etcd"):
        faults.append("[swarm] labels: needs a cluster: etcd in [cluster]")
    if faults:
        raise ConfigError(faults, source=str(source))
    return Config(
        **values,
        profiles=profiles,
        cluster=ClusterConfig(**cluster),
        replication=ReplicationConfig(**replication),
        swarm=SwarmConfig(**swarm),
        tuning=Tuning(**tuning),
    )


def file_faults(path: Path | None) -> list[str]:
    """Return why the file (as `load` has it) is not root's alone to write, if so."""
    source = path or DEFAULT_PATH
    try:
        fault = files.writer_fault(source)
    except OSError:
        return []  # none that is read
    return [f"{fault}; whoever writes to it is root on this node"] if fault else []


def _read(path: Path, *, required: bool, faults: list[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if required:
            faults.append(f"{path} does not exist")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{path} cannot be read: {error}")
    except tomllib.TOMLDecodeError as error:
        faults.append(syntax_fault(path, error))
    except RecursionError:
        faults.append(f"{path} cannot be read: it is nested too deep")
    return {}


def _values(
    section: str,
    types: Mapping[str, Any],
    raw: Mapping[str, Any],
    environment: Mapping[str, str],
    faults: list[str],
) -> dict[str, Any]:
    """Return the checked values of [*section*] and of the environment, by key."""
    table = raw.get(section, {})
    if not isinstance(table, dict):
        faults.append(f"[{section}] must be a table")
        table = {}
    given: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        if key in types:
            given[key] = (f"[{section}] {key}", value)
        else:
            faults.append(
                f"[{section}] {key}: unknown key (valid: {', '.join(sorted(types))})"
            )
    prefix = _PREFIXES[section]
    for variable, text in environment.items():
        key = variable.removeprefix(prefix).lower()
        if variable.startswith(prefix) and key in types and text:
            given[key] = (variable, _from_text(text, types[key]))
    values = {}
    for key, (name, value) in given.items():
        strict = not name.startswith("REMORA_")
        try:
            values[key] = from_objects(value, types[key], strict=strict)
        except msgspec.ValidationError:
            faults.append(f"{name}: {value_fault(key, types[key], value)}")
    return values


def _from_text(text: str, kind: Any) -> Any:
    """Return a variable's *text* as its key's type is written in a file."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    if kind == tuple[str, ...]:
        return tuple(each.strip() for each in text.split(",") if each.strip())
    return text


def _make_paths(values: dict[str, Any], keys: Sequence[str], faults: list[str]) -> None:
    """Turn the values of *keys* into paths; "" in an optional one is none."""
    for key in keys:
        if key not in values:
            continue
        if key in _CLUSTER_PATHS and not values[key]:
            del values[key]
            continue
        path = Path(values[key])
        if not path.is_absolute() or ".." in path.parts or not str(path).isprintable():
            faults.append(f"{key}: must be an absolute path, not {str(path)!r}")
        values[key] = path


def _follow_state_dir(values: dict[str, Any]) -> None:
    """Put pool and mounts below the state directory unless they are given."""
    state_dir = values.get(
        "state_dir", Config.__dataclass_fields__["state_dir"].default
    )
    values.setdefault("pool", state_dir / "pool")
    values.setdefault("mount_dir", state_dir / "mounts")


def _profiles(section: Any, faults: list[str]) -> dict[str, dict[str, str]]:
    """Return the profiles; their options are checked by the backend that they name."""
    if not isinstance(section, dict):
        faults.append("[profiles] must hold tables: [profiles.NAME]")
        return {}
    profiles: dict[str, dict[str, str]] = {}
    for name, options in section.items():
        if not isinstance(options, dict):
            faults.append(f"[profiles.{name}] must be a table of options")
            continue
        profiles[name] = {}
        for key, value in options.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                faults.append(f"[profiles.{name}] {key}: must be a string or a number")
            else:
                profiles[name][key] = str(value)
        if "profile" in profiles[name]:
            faults.append(f"[profiles.{name}] profile: a profile cannot name a profile")
            del profiles[name]["profile"]
        backend = profiles[name].get("backend")
        if backend is not None and backend not in TRAITS:
            faults.append(
                f"[profiles.{name}] backend: '{backend}' is none of {', '.join(TRAITS)}"
            )
    return profiles
