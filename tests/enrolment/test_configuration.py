"""What a new node's configuration says: this node's cluster, under another name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidRequestError
from plugin.config import ClusterConfig, Config, load
from plugin.enrolment import configuration
from plugin.enrolment.configuration import node_files
from plugin.errors import EnrolmentError
from tests.support.host import REPOSITORY

CLUSTER = ClusterConfig(
    etcd=("https://10.0.0.1:2379", "https://[fd00::1]:2379"),
    etcd_prefix="/two/",
    node_name="alpha",
    peer_address="10.0.0.1",
    peer_port=7500,
    lease_ttl_s=12.5,
    failsafe=False,
)
EXAMPLE = REPOSITORY / "packaging/remora.toml"


def loaded(text: str, directory: Path) -> Config:
    path = directory / "remora.toml"
    path.write_text(text)
    return load(path, {})


def test_the_cluster_is_the_same_and_the_node_another(tmp_path: Path) -> None:
    files = node_files(Config(cluster=CLUSTER), name="beta", address="")
    found = loaded(files.configuration, tmp_path).cluster
    assert found == replace(CLUSTER, node_name="beta", peer_address="")
    there = node_files(Config(cluster=CLUSTER), name="beta", address="10.0.0.2")
    assert loaded(there.configuration, tmp_path).cluster.peer_address == "10.0.0.2"


def test_paths_of_this_machine_are_not_copied(tmp_path: Path) -> None:
    config = Config(pool=Path("/srv/pool"), cluster=CLUSTER)
    text = node_files(config, name="beta", address="").configuration
    assert loaded(text, tmp_path) == replace(
        Config(), cluster=replace(CLUSTER, node_name="beta", peer_address="")
    )


def test_files_in_our_directory_keep_their_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The guide puts them there on each node; a second copy would grow old."""
    monkeypatch.setattr(configuration, "_OURS", str(tmp_path / "remora"))
    inside, outside = tmp_path / "remora/etcd/ca.crt", tmp_path / "remora/../password"
    inside.parent.mkdir(parents=True)
    for path in (inside, outside):
        path.write_text(path.name)
    cluster = replace(
        CLUSTER, etcd_user="remora", etcd_ca_file=inside, etcd_password_file=outside
    )
    files = node_files(Config(cluster=cluster), name="beta", address="")
    assert files.secrets == {
        str(inside): b"ca.crt",
        "/etc/remora/etcd/password": b"password",
    }


def test_files_are_copied_under_fixed_names(tmp_path: Path) -> None:
    here = {}
    for key in ("ca_file", "certificate_file", "key_file", "password_file"):
        here[f"etcd_{key}"] = tmp_path / f"my {key}"
        here[f"etcd_{key}"].write_bytes(key.encode() + b"\xff\n")
    cluster = replace(CLUSTER, etcd_user="remora", **here)
    files = node_files(Config(cluster=cluster), name="beta", address="")
    found = loaded(files.configuration, tmp_path).cluster
    for key, path in here.items():
        there = getattr(found, key)
        assert there.parent == Path("/etc/remora/etcd")
        assert files.secrets[str(there)] == path.read_bytes()
    assert len(files.secrets) == 4
    here["etcd_key_file"].unlink()
    with pytest.raises(EnrolmentError, match=r"cannot read .*my key_file"):
        node_files(Config(cluster=cluster), name="beta", address="")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.dictionaries(
            st.text(min_size=1, max_size=8).filter(
                lambda key: key not in ("profile", "backend")
            ),
            st.text(max_size=20),
            max_size=3,
        ),
        max_size=3,
    )
)
def test_profiles_arrive_whatever_is_in_them(
    tmp_path_factory: pytest.TempPathFactory,
    profiles: dict[str, dict[str, str]],
) -> None:
    config = Config(cluster=CLUSTER, profiles=profiles)
    text = node_files(config, name="beta", address="").configuration
    directory = tmp_path_factory.mktemp("etc")
    assert loaded(text, directory).profiles == profiles


@pytest.mark.parametrize(
    ("name", "address"), [("no spaces", ""), ("-x", ""), ("b", "example")]
)
def test_names_and_addresses_are_checked(name: str, address: str) -> None:
    with pytest.raises(InvalidRequestError):
        node_files(Config(cluster=CLUSTER), name=name, address=address)


def test_the_installed_example_sets_nothing() -> None:
    example = EXAMPLE.read_text()
    assert configuration.is_blank(example)
    assert not configuration.in_cluster(example)
    assert not configuration.is_blank("[daemon]\npool = '/srv'\n")
    assert not configuration.is_blank("no TOML")
    assert configuration.in_cluster("[cluster]\netcd = ['http://a:1']")
    assert not configuration.in_cluster(None)


def test_a_difference_shows_both_sides() -> None:
    shown = configuration.difference("a = 1\nb = 2\n", "a = 1\nb = 3\n")
    assert "-b = 2" in shown
    assert "+b = 3" in shown
    assert configuration.difference("a = 1\n", "a = 1\n") == ""
