"""
`packaging/install` on a host of its own, and what it installed: units, files, command.

The host's /usr is an overlay, so that an installation without DESTDIR is one.
"""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from plugin.config import Config, load
from plugin.daemon.backends import profile_faults
from tests.support.config_keys import environment_names
from tests.support.daemon import UnixConnection
from tests.support.guides import Printed
from tests.support.host import REPOSITORY, SYSTEM_PATH, Host, wait_until
from tests.support.wheels import offline

if TYPE_CHECKING:
    from collections.abc import Iterator

# One host for the module.
pytestmark = pytest.mark.xdist_group("install")
INSTALL_DEADLINE_S = 300
PLUGIN_SOCKET = "/run/docker/plugins/remora.sock"
UNITS = ("remora.service", "remora.socket")
UNIT_DIRECTORY = "/usr/lib/systemd/system"
# Every setting by which systemd 252 gives a service mounts of its own.
MOUNT_NAMESPACE_SETTINGS = {
    *("BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionImages"),
    *("ExtensionDirectories", "InaccessiblePaths", "MountAPIVFS", "MountFlags"),
    *("MountImages", "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts"),
    *("PrivateNetwork", "PrivateTmp", "PrivateUsers", "ProcSubset", "PrivateBPF"),
    *("PrivatePIDs", "BindLogSockets"),
    *("ProtectControlGroups", "ProtectHome", "ProtectKernelLogs", "LogNamespace"),
    *("ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem"),
    *("ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage", "RootHash"),
    *("TemporaryFileSystem", "NetworkNamespacePath", "IPCNamespacePath"),
}


def install(
    host: Host, *arguments: str, source: Path = REPOSITORY, **environment: str
) -> str:
    """Return what packaging/install prints, run as on a machine without network."""
    done = host.run(
        [str(source / "packaging/install"), *arguments],
        timeout_s=INSTALL_DEADLINE_S,
        env={**offline(), **environment},
    )
    return done.stdout


def changed_files(host: Host, directory: str) -> set[str]:
    """Return the files below the overlay *directory* that only the host has."""
    upper = host.work / f"{directory}-upper"
    return {
        f"/{directory}/{path.relative_to(upper)}"
        for path in upper.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Return a host where Remora is installed."""
    if shutil.which("python3", path="/usr/bin") is None:
        pytest.skip("needs Debian's python3")
    with Host("install") as host:
        upper, scratch = host.work / "usr-upper", host.work / "usr-work"
        upper.mkdir()
        scratch.mkdir()
        options = f"lowerdir=/usr,upperdir={upper},workdir={scratch}"
        host.run(["mount", "-t", "overlay", "-o", options, "overlay", "/usr"])
        install(host)
        yield host


# Files


def test_files_are_where_debian_puts_them(host: Host) -> None:
    files = changed_files(host, "usr")
    ours = {path for path in files if not path.startswith("/usr/lib/remora/")}
    guides = {path for path in ours if path.startswith("/usr/share/doc/remora/")}
    assert "/usr/share/doc/remora/guides/install.md" in guides
    assert ours - guides == {
        "/usr/bin/remora",
        "/usr/lib/systemd/system/remora.service",
        "/usr/lib/systemd/system/remora.socket",
        "/usr/share/bash-completion/completions/remora",
    }
    link = host.run(["readlink", "/usr/bin/remora"]).stdout.strip()
    assert link == "/usr/lib/remora/bin/remora"


def test_nothing_names_the_source_tree(host: Host) -> None:
    for place in (str(REPOSITORY), "/usr/lib/remora.new"):
        found = host.run(
            ["grep", "-rlF", "--", place, "/usr/lib/remora"], check=False
        ).stdout.splitlines()
        assert found == []


def test_everything_is_compiled(host: Host) -> None:
    files = changed_files(host, "usr")
    for path in (each for each in files if each.endswith(".py")):
        source = Path(path)
        compiled = source.parent / f"__pycache__/{source.stem}.cpython-311.pyc"
        assert str(compiled) in files


def test_the_command_runs_as_anybody(host: Host) -> None:
    assert "remora, version" in host.run(["remora", "--version"]).stdout
    done = host.run(["setpriv", "--reuid=65534", "remora", "--version"])
    assert "remora, version" in done.stdout


def test_the_callers_environment_changes_no_import(host: Host) -> None:
    poison = host.work / "poison"
    poison.mkdir()
    (poison / "click.py").write_text("raise SystemExit('poisoned')\n")
    done = host.run(["remora", "--version"], env={"PYTHONPATH": str(poison)})
    assert "remora, version" in done.stdout


def test_bash_completes_the_verbs(host: Host) -> None:
    script = (
        "source /usr/share/bash-completion/completions/remora;"
        "COMP_WORDS=(remora insp) COMP_CWORD=1; _remora_completion remora;"
        'echo "${COMPREPLY[@]}"'
    )
    assert host.run(["bash", "-c", script]).stdout.strip() == "inspect"


# The example configuration


def test_the_example_is_valid(host: Host) -> None:
    assert "good" in host.run(["remora", "config", "check"]).stdout


def test_the_example_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (REPOSITORY / "packaging/remora.toml").read_text()
    lines = [
        line[1:] if line.startswith("#") and " = " in line and line[1] != " " else line
        for line in text.splitlines()
        if not line.startswith("#[profiles")
    ]
    shown = [line.split(" = ")[0] for line in lines if not line.startswith("#")]
    daemon, _, profiles = "\n".join(lines).partition("# Profiles")
    path = tmp_path / "remora.toml"
    path.write_text(daemon)
    assert load(path, {}) == Config()
    for name in environment_names():
        assert name.removeprefix("REMORA_").removeprefix("SWARM_").lower() in shown
    assert profiles


def test_the_examples_profiles_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "packaging/remora.toml").read_text()
    _, _, profiles = text.partition("#[profiles.default]")
    path = tmp_path / "remora.toml"
    path.write_text("[profiles.default]" + profiles.replace("\n#", "\n"))
    config = load(path, {})
    assert set(config.profiles) >= {"default", "app"}
    assert profile_faults(config) == []


# Units


def test_systemd_finds_no_fault_in_the_units(host: Host) -> None:
    paths = [f"{UNIT_DIRECTORY}/{unit}" for unit in UNITS]
    paths.append(str(REPOSITORY / "systemd/remora-csi.service"))
    done = host.run(["systemd-analyze", "verify", "--man=no", *paths], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_names_what_was_installed(host: Host, unit: str) -> None:
    assert (REPOSITORY / "systemd" / unit).read_text() == host.path(
        f"{UNIT_DIRECTORY}/{unit}"
    ).read_text()


@pytest.mark.parametrize("unit", ["remora.service", "remora-csi.service"])
def test_the_service_shares_the_hosts_mounts(unit: str) -> None:
    """With mounts of its own, dockerd would not see the volumes."""
    text = (REPOSITORY / "systemd" / unit).read_text()
    settings = {
        line.partition("=")[0] for line in text.splitlines() if not line.startswith("#")
    }
    assert settings & MOUNT_NAMESPACE_SETTINGS == set()


def test_socket_activation_and_notification(host: Host) -> None:
    """The real starter of sockets, and the messages that a service manager gets."""
    heard = host.path("/run/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(heard))
        manager.settimeout(20)
        starter = host.popen(
            [
                *("systemd-socket-activate", "-l", PLUGIN_SOCKET),
                *("-E", "NOTIFY_SOCKET=/run/notify", "remora", "serve"),
            ],
            log=host.log_path("activated"),
        )
        path = host.path(PLUGIN_SOCKET)
        wait_until(path.is_socket, timeout_s=10, what="the socket is there")
        inode = path.stat().st_ino
        assert host.path("/run/remora").exists() is False
        # The first call starts the daemon, and is answered by it.
        connection = UnixConnection(path, 20)
        connection.request("POST", "/Plugin.Activate")
        assert b"VolumeDriver" in connection.getresponse().read()
        connection.close()
        assert b"READY=1" in manager.recv(4096)
        starter.terminate()
        assert b"STOPPING=1" in manager.recv(4096)
        assert starter.wait(timeout=20) == 0
        host.forget(starter)
    # Only who made the socket may remove it.
    assert path.stat().st_ino == inode
    assert not host.path("/run/remora/control.sock").exists()
    path.unlink()


# Other places, repeated installation, removal


def test_another_place(host: Host, tmp_path: Path) -> None:
    install(host, DESTDIR=str(tmp_path), PREFIX="/opt/remora", CSI="yes")
    assert (tmp_path / "etc/remora/remora.toml").exists()
    unit = (tmp_path / "usr/lib/systemd/system/remora.service").read_text()
    assert "ExecStart=/opt/remora/bin/remora serve" in unit
    assert "/usr/bin/remora" not in unit
    driver = tmp_path / "usr/lib/systemd/system/remora-csi.service"
    assert "ExecStart=/opt/remora/bin/remora csi" in driver.read_text()
    assert list((tmp_path / "opt/remora/lib/remora/lib").glob("*/*/grpc"))
    command = (tmp_path / "opt/remora/lib/remora/bin/remora").read_text()
    assert command.startswith("#!/opt/remora/lib/remora/bin/python3 -I\n")
    assert "--uninstall" not in install(host, "--uninstall", DESTDIR=str(tmp_path))
    assert not driver.exists()


@pytest.mark.printed("install.md", "Without a network")
def test_an_installation_over_another_keeps_the_configuration(
    host: Host, printed: Printed, tmp_path: Path
) -> None:
    """Without a network, as the guide says; here all is fetched from where it lies."""
    file = host.path("/etc/remora/remora.toml")
    file.write_text("# mine\n")
    for part in REPOSITORY.iterdir():
        (tmp_path / part.name).symlink_to(part)
    path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
    for command, settings in (("pip download", offline()), ("PIP_NO_INDEX", {})):
        script = f"cd {tmp_path}; {printed.take(command).text}"
        host.run(
            ["sh", "-euc", script],
            timeout_s=INSTALL_DEADLINE_S,
            env={"PATH": path, **settings},
        )
    fetched = {each.name.split("-")[0] for each in (tmp_path / "wheels").iterdir()}
    locked = (REPOSITORY / "requirements/runtime.txt").read_text()
    names = re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE)
    assert fetched == {each.replace("-", "_") for each in names}
    assert file.read_text() == "# mine\n"
    assert "remora, version" in host.run(["remora", "--version"]).stdout


def test_a_failed_installation_leaves_the_old_one(host: Host, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    for part in ("packaging", "plugin", "backends", "systemd", "docs", "requirements"):
        shutil.copytree(REPOSITORY / part, copy / part)
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    lock = copy / "requirements/runtime.txt"
    lock.write_text(lock.read_text().replace("--hash=sha256:", "--hash=sha256:0"))
    told = r"hash(?s:.*)without a network: docs/guides/install.md"
    with pytest.raises(AssertionError, match=told):
        install(host, source=copy)
    assert "remora, version" in host.run(["remora", "--version"]).stdout
    assert not host.path("/usr/lib/remora.new").exists()


@pytest.mark.printed("install.md", "Uninstall")
def test_uninstalling_keeps_volumes_and_configuration(
    host: Host, printed: Printed
) -> None:
    data = host.path("/var/lib/remora/pool/volumes/x/live")
    data.mkdir(parents=True)
    (data / "file").write_text("kept")
    told = host.run(["sh", "-euc", f"cd {REPOSITORY}; {printed.take().text}"]).stdout
    assert "are kept" in told
    assert (data / "file").read_text() == "kept"
    assert host.path("/etc/remora/remora.toml").exists()
    assert changed_files(host, "usr") == set()
    # Nothing left to do is no error.
    install(host, "--uninstall")
    install(host)
