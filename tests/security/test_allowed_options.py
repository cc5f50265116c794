"""
What a caller of Docker's API can ask for where the configuration allows few options.

The caller is an engine's: its requests go to the plugin socket of the real daemon. What
is refused would read or take what is not the caller's.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Callable, Iterator

import pytest

from plugin.config import ClusterConfig, Config
from plugin.enrolment.configuration import node_files
from plugin.volumes.options import AllowedOptions
from tests.protocol.node import Node, running

pytestmark = pytest.mark.xdist_group("allowed-options")
PROFILES = """
[profiles.private]
mode = "0700"
uid = 70
[profiles.shared]
server = "203.0.113.7"
share = "/export"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Yield a node whose engine's callers may name a profile, and a size."""
    with running(allowed_options=["profile", "size"], profiles=PROFILES) as found:
        found.create("secret")
        yield found


@pytest.mark.parametrize(
    "options",
    [
        {"from": "secret"},
        {"FROM": "secret"},
        {"server": "203.0.113.7", "share": "/"},
        {"type": "nfs", "o": "addr=203.0.113.7", "device": ":/"},
        {"device": "/etc"},
        {"profile": "private", "uid": "0"},
        {"profile": "shared", "subDir": "team", "existing": "adopt"},
        {"profile": "shared", "subdir": "../x"},
        {"suid": "true"},
        {"backend": "nfs"},
        {"fence": "none"},
        {"replicas": "9"},
        {"nonsense": "x"},
        {"": "x"},
        {"profile ": "private"},
        {"pro\ufb01le": "private"},
        {"mode": "0777\nforged"},
        {"mo\nde": "0777"},
    ],
)
def test_any_other_option_is_refused_in_one_line(
    node: Node, options: dict[str, str]
) -> None:
    told = node.refused("Create", Name="mine", Opts=options)
    refused = {each for each in options if each.lower() not in ("profile", "size")}
    assert "allowed_options" in told
    assert "has profile, size" in told
    assert "remora create" in told
    name = told.partition("option '")[2].partition("' may")[0]
    assert name in {each.replace("\n", "\\n") for each in refused}
    assert node.names() == ["secret"]


def test_a_profile_has_what_the_file_says(node: Node) -> None:
    node.ok("Create", Name="app", Opts={"Profile": "private"})
    assert node.get("app")["Status"]["options"]["mode"] == "0700"
    # The same again is no other volume.
    node.ok("Create", Name="app", Opts={"profile": "private"})
    node.ok("Remove", Name="app")
    assert "unknown profile" in node.refused(
        "Create", Name="app", Opts={"profile": "other"}
    )


def test_the_value_of_an_allowed_option_is_checked_as_ever(node: Node) -> None:
    told = node.refused("Create", Name="app", Opts={"size": "much"})
    assert "option 'size'" in told
    assert "allowed_options" not in told


def test_none_is_needed(node: Node) -> None:
    for options in (None, {}):
        node.ok("Create", Name="plain", Opts=options)
        node.ok("Remove", Name="plain")


def test_roots_own_command_is_not_limited(node: Node) -> None:
    """It speaks to the control socket, which is root's."""
    made = subprocess.run(
        node.inside(*node.remora("create", "roots", "-o", "mode=0711", "--json")),
        env=node.environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert json.loads(made.stdout)["options"]["mode"] == "0711"
    copied = node.control(
        "POST", "/v1/clone", {"name": "copy", "source": "roots", "options": {}}
    )
    assert copied.status == 200
    for name in ("copy", "roots"):
        node.ok("Remove", Name=name)


def test_no_option_at_all(make_node: Callable[..., Node]) -> None:
    node = make_node(allowed_options=[])
    node.start()
    told = node.refused("Create", Name="v", Opts={"profile": "x"})
    assert "has none" in told
    node.create("v")


def test_all_are_allowed_unless_something_is_said(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.start()
    node.create("v", mode="0711")
    node.stop()
    node.start({"REMORA_ALLOWED_OPTIONS": "Profile, MODE"})
    node.create("w", mode="0711")
    assert "option 'uid' may not" in node.refused("Create", Name="x", Opts={"uid": "1"})


def test_a_name_that_is_none_is_a_fault(make_node: Callable[..., Node]) -> None:
    node = make_node(allowed_options=["profile", "si ze"])
    code, told = node.refused_start()
    assert code == 17
    assert "allowed_options: 'si ze' is no name of an option, nor *" in told


def test_an_enrolled_node_is_given_the_same() -> None:
    """Else its engine's callers, as in a swarm, could ask for more than ours."""
    cluster = ClusterConfig(etcd=("https://10.0.0.1:2379",))
    config = Config(cluster=cluster, allowed_options=("profile",))
    text = node_files(config, name="beta", address="").configuration
    assert tomllib.loads(text)["daemon"] == {"allowed_options": ["profile"]}


def test_the_first_of_many_is_named() -> None:
    asked = {"b": "1", "a" * 99: "2"}
    with pytest.raises(Exception, match=f"option '{'a' * 64}' may not") as caught:
        AllowedOptions(("profile",)).checked(asked)
    assert str(caught.value).isprintable()
    assert AllowedOptions(("*",)).checked(asked) == asked
