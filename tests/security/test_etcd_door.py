"""
The way to etcd: who is on it, or has this node's password or key, is root on all nodes.

The daemon and the command are the real ones. No endpoint here answers: what is refused
is refused before anything is sent.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugin.config import ClusterConfig, Config, load
from plugin.enrolment.configuration import node_files
from plugin.errors import ConfigError
from plugin.membership.settings import etcd_settings
from tests.protocol.command import Cli, caller
from tests.protocol.node import Node
from tests.support.joining import Machine

pytestmark = pytest.mark.xdist_group("doors")
# Of the documentation's networks; nobody is there.
STRANGE = (
    "http://203.0.113.7:2379",
    "http://[2001:db8::7]:2379",
    "http://etcd.example.net:2379",
    "http://localhost.example.net:2379",
    "http://127.0.0.1.example.net:2379",
    "http://0.0.0.0:2379",
    "http://[::]:2379",
    "http://10.0.0.1:2379/",
    "http://2130706433:2379",
    "http://127.1:2379",
    "http://LOCALHOST.:2379",
)
NO_ENDPOINT = (
    "http://127.0.0.1:80@203.0.113.7:2379",
    "http://127.0.0.1#@203.0.113.7:2379",
    "http://127.0.0.1?@203.0.113.7:2379",
    "http://127.0.0.1\\@203.0.113.7:2379",
    "HTTP://203.0.113.7:2379",
    "http:///203.0.113.7:2379",
)
OWN = (
    "http://127.0.0.1:2379",
    "http://127.66.5.4:2379",
    "http://[::1]:2379",
    "http://localhost:2379",
    "https://203.0.113.7:2379",
    "https://etcd.example.net:2379",
)


def configured(tmp_path: Path, *endpoints: str, more: str = "") -> Config:
    path = tmp_path / "remora.toml"
    path.write_text(f"[cluster]\netcd = {[*endpoints]!r}\n{more}")
    return load(path, {})


@pytest.mark.parametrize("endpoint", STRANGE)
def test_nothing_is_said_in_the_clear_over_a_network(
    tmp_path: Path, endpoint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, "https://203.0.113.8:2379", endpoint)
    [told] = caught.value.faults
    assert told.startswith(f"etcd: '{endpoint}' has no TLS")
    assert "etcd_insecure = true" in told
    found = configured(tmp_path, endpoint, more="etcd_insecure = true\n")
    assert found.cluster.etcd == (endpoint,)


@pytest.mark.parametrize("endpoint", NO_ENDPOINT)
def test_no_spelling_hides_where_it_leads(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be http://HOST:PORT"):
        configured(tmp_path, endpoint, more="etcd_insecure = true\n")


@pytest.mark.parametrize("endpoint", OWN)
def test_what_stays_here_or_is_encrypted_is_taken(
    tmp_path: Path, endpoint: str
) -> None:
    assert configured(tmp_path, endpoint).cluster.etcd == (endpoint,)


def test_the_daemon_does_not_start_with_it(make_node: Callable[..., Node]) -> None:
    node = make_node()
    code, told = node.refused_start({"REMORA_ETCD": STRANGE[0]})
    assert code == ConfigError.exit_code
    assert told.count("\n") == 1
    assert "has no TLS" in told


def test_a_node_does_not_join_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path / "a", (STRANGE[0],))
    cli: Cli = caller(SimpleNamespace(config=machine.config), monkeypatch, capsys)  # type: ignore[arg-type]
    before = machine.config.read_bytes()
    done = cli(*machine.join)
    assert done.code == ConfigError.exit_code
    assert "has no TLS" in done.error
    assert machine.config.read_bytes() == before


def test_a_node_is_told_what_holds_for_the_cluster() -> None:
    """Else an enrolled one could not start."""
    cluster = ClusterConfig(etcd=(STRANGE[0],), etcd_insecure=True)
    text = node_files(Config(cluster=cluster), name="beta", address="").configuration
    assert tomllib.loads(text)["cluster"]["etcd_insecure"] is True


@pytest.mark.parametrize("key", ["etcd_password_file", "etcd_key_file"])
def test_secrets_are_roots_alone(tmp_path: Path, key: str) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0o644)
    cluster = ClusterConfig(etcd=("https://203.0.113.7:2379",), **{key: path})
    with pytest.raises(ConfigError) as caught:
        etcd_settings(cluster)
    assert caught.value.faults == [
        f"{key}: {path} is open to others (mode 0644): chmod 600 {path}"
    ]
    path.chmod(0o600)
    assert etcd_settings(cluster).endpoints == cluster.etcd


def test_config_check_tells_of_them(make_node: Callable[..., Node]) -> None:
    node = make_node()
    path = node.directory / "password"
    path.write_text("secretpw")
    path.chmod(0o644)
    environment = {
        "REMORA_ETCD": "http://127.0.0.1:1",
        "REMORA_ETCD_USER": "remora",
        "REMORA_ETCD_PASSWORD_FILE": str(path),
    }
    for command in ("config check", "serve", "cluster status"):
        done = subprocess.run(
            node.inside(*node.remora(*command.split())),
            env=node.environment(environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == ConfigError.exit_code, (command, done.stderr)
        assert done.stderr.count("\n") == 1
        assert f"{path} is open to others (mode 0644)" in done.stderr
        assert "secretpw" not in done.stdout + done.stderr
