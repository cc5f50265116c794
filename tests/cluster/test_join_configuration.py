"""`remora cluster join`: the configuration file, options, TLS and users."""

from __future__ import annotations

import tomllib
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugin.config import ClusterConfig
from plugin.errors import ConfigError, StoreError
from plugin.joining.joined import refuse_joined
from plugin.joining.section import with_section
from tests.contract.test_etcd_security import Certificates
from tests.protocol.command import Cli, caller
from tests.support import etcd
from tests.support.joining import Machine, put_volume, volume

pytestmark = pytest.mark.xdist_group("etcd-members")


def test_the_configuration_keeps_what_people_wrote(machine: Machine, cli: Cli) -> None:
    before = machine.config.read_bytes()
    machine.config.chmod(0o640)
    dry = cli(*machine.join, "--dry-run")
    assert (dry.code, machine.config.read_bytes()) == (0, before)
    assert cli(*machine.join).code == 0
    after = machine.config.read_bytes()
    assert after.startswith(before)
    assert machine.config.stat().st_mode & 0o777 == 0o640
    assert machine.loaded().cluster.etcd == machine.endpoints
    assert machine.loaded().cluster.etcd_prefix == machine.prefix
    # Again, and without options: all is done, and nothing is written.
    assert cli("cluster", "join").code == 0
    assert machine.config.read_bytes() == after
    assert sorted(path.name for path in machine.directory.iterdir()) == [
        "remora.toml",
        "state",
    ]


def test_a_file_that_does_not_exist_is_made(machine: Machine, cli: Cli) -> None:
    machine.config.unlink()
    done = cli(*machine.join, REMORA_STATE_DIR=str(machine.state_dir))
    assert done.code == 0
    assert machine.config.stat().st_mode & 0o777 == 0o644
    assert set(tomllib.loads(machine.config.read_text())) == {"cluster"}


def test_that_it_may_be_insecure_is_written(machine: Machine, cli: Cli) -> None:
    assert cli(*machine.join, "--insecure").code == 0
    assert tomllib.loads(machine.config.read_text())["cluster"]["etcd_insecure"] is True
    assert machine.loaded().cluster.etcd_insecure
    # It may be left out, and given again.
    for again in ((), ("--insecure",)):
        assert cli("cluster", "join", *again).code == 0


@pytest.mark.parametrize(
    "text",
    [
        "# a\n[cluster]# b\npeer_port = 7\n",
        "[cluster]",
        "[cluster]\r\npeer_port = 7\r\n",
    ],
)
def test_a_section_that_is_there_is_filled_up(text: str) -> None:
    cluster = ClusterConfig(etcd=("http://a:2379",), node_name="n")
    made = with_section(text.encode(), cluster, source="file")
    values = tomllib.loads(made.decode())["cluster"]
    assert values["etcd"] == ["http://a:2379"]
    assert values["node_name"] == "n"
    removed = made.replace(b'etcd = ["http://a:2379"]\nnode_name = "n"\n', b"")
    assert removed.rstrip() == text.encode().rstrip()


@pytest.mark.parametrize(
    "text",
    [
        "cluster = {peer_port = 7}\n",
        'x = """\n[cluster]\n"""\ncluster.peer_port = 7\n',
        '[cluster]\netcd = ["http://b:2379"]\n',
        '[cluster]\nnode_name = "m"\n',
    ],
)
def test_a_section_that_only_people_can_change_is_refused(text: str) -> None:
    cluster = ClusterConfig(etcd=("http://a:2379",), node_name="n")
    with pytest.raises(ConfigError):
        with_section(text.encode(), cluster, source="file")


def test_another_cluster_in_the_file_is_refused_first(
    machine: Machine, cli: Cli
) -> None:
    machine.write(put_volume(volume("data")))
    text = machine.config.read_text() + '[cluster]\netcd = ["http://127.9.9.9:1"]\n'
    machine.config.write_text(text)
    done = cli(*machine.join)
    assert done.code == ConfigError.exit_code
    assert "127.9.9.9" in done.error
    assert machine.records_there() == {}
    assert machine.config.read_text() == text


def test_etcd_away_changes_nothing(machine: Machine, cli: Cli) -> None:
    machine.write(put_volume(volume("data")))
    before = machine.config.read_bytes()
    done = cli("cluster", "join", "--etcd", f"http://{etcd.new_address()}:2379")
    assert done.code == StoreError.exit_code
    assert "etcd did not answer" in done.error
    assert machine.config.read_bytes() == before
    with closing(machine.node()) as node:
        refuse_joined(node, machine.loaded())


def test_options_are_checked(machine: Machine, cli: Cli) -> None:
    assert cli("cluster", "join").code == 2
    assert cli("cluster", "join", "--etcd", "nonsense").code == ConfigError.exit_code
    user = cli(*machine.join, "--user", "u")
    assert "etcd_password_file" in user.error


def test_tls_with_certificate_user_and_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = etcd.memory_directory(tmp_path / "tls")
    certificates = Certificates(directory, "ca")
    address = etcd.new_address()
    server, server_key = certificates.signed(
        "server", subject="/O=etcd", address=address
    )
    client, client_key = certificates.signed("client", subject="/O=remora")
    authority = str(certificates.authority)
    extra = ["--cert-file", str(server), "--key-file", str(server_key)]
    extra += ["--client-cert-auth", "--trusted-ca-file", authority]
    ctl = ["--cacert", authority, "--cert", str(client), "--key", str(client_key)]
    member = etcd.Member("tls", directory, address, scheme="https", extra=extra)
    with etcd.Cluster([member], ctl) as cluster:
        cluster.ctl("user", "add", "root:x")
        cluster.ctl("user", "grant-role", "root", "root")
        cluster.ctl("role", "add", "remora")
        cluster.ctl(
            "role", "grant-permission", "remora", "--prefix=true", "readwrite", "/p/"
        )
        cluster.ctl("user", "add", "remora:secret")
        cluster.ctl("user", "grant-role", "remora", "remora")
        cluster.ctl("auth", "enable")
        machine = Machine(tmp_path / "a", cluster.endpoints, prefix="/p/")
        machine.write(put_volume(volume("data")))
        password = tmp_path / "password"
        password.write_text("secret\n")
        password.chmod(0o600)
        cli = caller(SimpleNamespace(config=machine.config), monkeypatch, capsys)  # type: ignore[arg-type]
        secure = [
            *("--ca-file", authority, "--cert-file", str(client)),
            *("--key-file", str(client_key), "--user", "remora"),
        ]
        wrong = tmp_path / "wrong"
        wrong.write_text("nonsense")
        wrong.chmod(0o600)
        refused = cli(*machine.join, *secure, "--password-file", str(wrong))
        assert refused.code == StoreError.exit_code
        joined = cli(*machine.join, *secure, "--password-file", str(password))
        assert joined.code == 0, joined.err
        # What was written is enough for what comes after, and holds no secret.
        assert "secret" not in machine.config.read_text()
        dump = cli("cluster", "dump")
        assert dump.code == 0
        assert "volumes/data" in dump.out
