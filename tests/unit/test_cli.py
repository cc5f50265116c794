"""The `remora` command against a real daemon: every verb, exit code and --json."""

from __future__ import annotations

import gc
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin import __version__
from tests.protocol.command import Cli, Done, caller
from tests.protocol.node import Node, running

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _emptied(node: Node) -> Iterator[None]:
    """Let every test begin without volumes, whatever became of the one before."""
    yield
    for name in node.names():
        while sum(node.references(name)):
            node.ok("Unmount", Name=name, ID="a")
        node.ok("Remove", Name=name)
    gc.collect()  # here, where unclosed sockets are expected


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running(profiles='[profiles.private]\nmode = "0700"') as found:
        yield found


@pytest.fixture
def cli(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    """Return a function that calls the command as a shell does."""
    return caller(node, monkeypatch, capsys)


def test_a_volumes_life(cli: Cli, node: Node) -> None:
    assert cli("create", "life", "-o", "mode=0750") == Done(0, "life\n", "")
    [heading, row] = cli("ls").out.splitlines()
    assert heading.split() == [
        *("NAME", "BACKEND", "MOUNTED", "HEALTH", "AVAILABLE", "CREATED"),
    ]
    assert row.split()[:4] == ["life", "rsync", "no", "ok"]
    node.ok("Mount", Name="life", ID="a")
    assert cli("ls").out.splitlines()[1].split()[2] == "yes"
    lines = cli("inspect", "life").out.splitlines()
    assert lines[0] == "name: life"
    assert "  mode: 0750" in lines
    assert "  live: 1" in lines
    node.ok("Unmount", Name="life", ID="a")
    assert cli("rm", "--force", "life") == Done(0, "life\n", "")
    assert cli("ls").out.split() == heading.split()
    assert node.stored() == []


def test_json_of_a_volumes_life(cli: Cli, node: Node) -> None:
    made = cli("create", "life", "-o", "profile=private", "--json").json()
    assert made["name"] == "life"
    assert made["options"]["mode"] == "0700"
    assert made["mountpoint"] == ""
    node.ok("Mount", Name="life", ID="a")
    shown = cli("inspect", "life", "--json").json()
    assert shown["mountpoint"] == str(node.mount_dir / made["id"])
    assert shown["references"] == {"live": 1, "inherited": 0}
    assert cli("ls", "--json").json() == [shown]
    status = cli("status", "--json").json()
    assert status["version"] == __version__
    assert (status["volumes"], status["mounted"]) == (1, 1)
    assert [each["health"] for each in status["storages"].values()] == ["ok"]
    node.ok("Unmount", Name="life", ID="a")
    removed = cli("rm", "life", "--force", "--json").json()
    assert removed == {"removed": "life"}
    assert cli("ls", "--json").json() == []


def test_create_repeated(cli: Cli) -> None:
    first = cli("create", "twice", "-o", "mode=0750", "--json").json()
    assert cli("create", "twice", "-o", "mode=750", "--json").json() == first
    done = cli("create", "twice", "-o", "mode=0700")
    assert done.code == 18
    assert done.error.startswith("volume-exists: ")
    assert cli("rm", "--force", "twice").code == 0


def test_status_shows_sizes_for_people(cli: Cli) -> None:
    lines = cli("status").out.splitlines()
    assert lines[0] == f"version: {__version__}"
    [size] = [line for line in lines if line.startswith("    total bytes: ")]
    assert re.fullmatch(r"    total bytes: \d+\.\d [KMGT]iB", size)


@pytest.mark.parametrize(
    ("arguments", "code", "start"),
    [
        (["create", "a b"], 10, "invalid-request: 'a b' is not a volume name"),
        (["create", "x", "-o", "sise=1"], 10, "invalid-request: unknown option 'sise'"),
        (["create", "x", "-o", "mode="], 10, "invalid-request: option 'mode'"),
        (["create", "x", "-o", "profile=none"], 10, "invalid-request: unknown profile"),
        (["create", "x\ny"], 10, "invalid-request: 'x\\ny' is not"),
        (["inspect", "none"], 11, "volume-not-found: there is no volume 'none'"),
        (["rm", "--force", "none"], 11, "volume-not-found: "),
    ],
)
def test_what_the_daemon_refuses(
    cli: Cli, arguments: list[str], code: int, start: str
) -> None:
    done = cli(*arguments)
    assert done.code == code
    assert done.error.startswith(start)
    assert cli(*arguments, "--json").error == done.error


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "/", "..", "../volumes/x", "a//b", "%2e?x#y", "ü", "x\ny", "x" * 300],
)
@pytest.mark.parametrize("verb", [["inspect"], ["rm", "--force"]])
def test_a_name_that_is_none_is_no_dead_daemon(
    cli: Cli, verb: list[str], name: str
) -> None:
    done = cli(*verb, name)
    assert done.code == 10
    assert done.error.startswith("invalid-request: ")


def test_a_volume_in_use_is_not_removed(cli: Cli, node: Node) -> None:
    cli("create", "used")
    node.ok("Mount", Name="used", ID="a")
    done = cli("rm", "--force", "used")
    assert done.code == 12
    assert done.error.startswith("volume-busy: ")
    assert "'used'" in done.error
    node.ok("Unmount", Name="used", ID="a")
    assert cli("rm", "--force", "used").code == 0


def test_removal_asks_first(cli: Cli, node: Node) -> None:
    cli("create", "asked")
    for answer in ("", "\n", "n\n", "x\n"):
        done = cli("rm", "asked", answer=answer)
        assert (done.code, done.out) == (130, "")
        assert "Remove volume 'asked' and all its data?" in done.err
    assert node.names() == ["asked"]
    done = cli("rm", "asked", answer="y\n")
    assert (done.code, done.out) == (0, "asked\n")
    assert node.names() == []


def test_storage_that_fails(cli: Cli, node: Node) -> None:
    hidden = node.pool.with_name("hidden")
    node.pool.rename(hidden)
    try:
        done = cli("create", "x")
        assert done.code == 15
        assert done.error.startswith("backend-failed: ")
        assert cli("status").code == 0
    finally:
        hidden.rename(node.pool)


def test_repair_adopts_what_the_store_has_lost(cli: Cli, node: Node) -> None:
    assert cli("repair").out == "nothing to repair\n"
    report = cli("repair", "--json").json()
    assert report == {"adopted": [], "undone": [], "refused": [], "released": []}
    source = node.pool / "volumes" / cli("create", "left", "--json").json()["id"]
    copy = source.with_name("11111111-1111-1111-1111-111111111111")
    subprocess.run(["cp", "-a", source, copy], check=True)
    file = copy / "volume.json"
    file.write_text(
        file.read_text().replace(source.name, copy.name).replace('"left"', '"found"')
    )
    assert cli("repair", "--dry-run").out == "would be adopted: found\n"
    assert node.names() == ["left"]
    assert cli("repair").out == "adopted: found\n"
    assert node.names() == ["found", "left"]
    for name in ("found", "left"):
        assert cli("rm", "--force", name).code == 0


def test_what_an_older_version_made_small_is_a_volume(cli: Cli, node: Node) -> None:
    """A new one cannot be so small: who asks for 16 has gigabytes elsewhere."""
    source = node.pool / "volumes" / cli("create", "left", "--json").json()["id"]
    copy = source.with_name("33333333-3333-3333-3333-333333333333")
    subprocess.run(["cp", "-a", source, copy], check=True)
    described = json.loads((copy / "volume.json").read_text())
    described |= {"id": copy.name, "name": "small", "options": {"size": "524288"}}
    (copy / "volume.json").write_text(json.dumps(described))
    assert cli("repair").out == "adopted: small\n"
    assert node.create("small", size="512k") == copy.name
    told = node.refused("Create", Name="new", Opts={"size": "16"})
    assert "must be 1M or more, not 16 bytes" in told
    assert "write 16GiB if gigabytes are meant" in told
    assert node.names() == ["left", "small"]
    for name in ("left", "small"):
        assert cli("rm", "--force", name).code == 0


def test_repair_refuses_what_has_a_records_name(cli: Cli, node: Node) -> None:
    source = node.pool / "volumes" / cli("create", "name", "--json").json()["id"]
    copy = source.with_name("22222222-2222-2222-2222-222222222222")
    subprocess.run(["cp", "-a", source, copy], check=True)
    file = copy / "volume.json"
    file.write_text(file.read_text().replace(source.name, copy.name))
    report = cli("repair", "--json").json()
    assert (report["adopted"], len(report["refused"])) == ([], 1)
    assert f"name ({copy.name}): volume-exists: " in report["refused"][0]
    assert file.exists()
    subprocess.run(["rm", "-r", copy], check=True)
    assert cli("rm", "--force", "name").code == 0


def test_repair_releases_what_nothing_uses(cli: Cli, node: Node) -> None:
    """An Unmount was lost without a restart of anybody."""
    cli("create", "lost")
    node.ok("Mount", Name="lost", ID="a")
    assert "released" not in cli("repair", "--dry-run").out
    assert cli("repair").out == "released: lost\n"
    assert node.mounts() == []
    assert cli("rm", "--force", "lost").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["create"],
        ["create", "x", "y"],
        ["create", "x", "-o", "mode"],
        ["create", "x", "-o", "=1"],
        ["inspect"],
        ["ls", "--yaml"],
        ["ls", "x"],
        ["rm"],
        ["config"],
        ["completion", "tcsh"],
        [],
    ],
)
def test_usage_errors_exit_with_2(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: remora" in done.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["ls", "--help"], ["import", "-h"]]
)
def test_help_is_no_error(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.code, done.err) == (0, "")
    assert "Usage: remora" in done.out


def test_version(cli: Cli) -> None:
    assert cli("--version") == Done(0, f"remora, version {__version__}\n", "")


VERBS = [
    ["ls"],
    ["inspect", "x"],
    ["status"],
    ["create", "x"],
    ["rm", "--force", "x"],
    ["repair"],
]


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_daemon(cli: Cli, tmp_path: Path, verb: list[str]) -> None:
    path = str(tmp_path / "none.sock")
    for as_json in ([], ["--json"]):
        done = cli(*verb, *as_json, REMORA_CONTROL_SOCKET=path)
        assert done.code == 19
        assert done.error.startswith(
            f"daemon-unreachable: there is no daemon at {path} (hint: "
        )


def test_a_daemon_that_was_killed(cli: Cli) -> None:
    with running() as other:
        other.kill()
        done = cli("ls", REMORA_CONFIG=str(other.config))
        assert done.code == 19
        assert f"the daemon at {other.control_socket} does not answer" in done.error


def test_proxies_of_the_shell_are_not_used(cli: Cli) -> None:
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "all_proxy"), "http://[::1]:1"
    )
    assert cli("ls", "--json", **proxies).json() == []


def test_config_check(cli: Cli, node: Node, tmp_path: Path) -> None:
    assert cli("config", "check").out == f"configuration is good: {node.config}\n"
    good = cli("config", "check", "--json").json()
    assert good == {"source": str(node.config), "faults": []}
    bad = tmp_path / "bad.toml"
    bad.write_text('[daemon]\na = 1\nb = 2\n[profiles.x]\nmode = "rwx"')
    for arguments in (["--config", str(bad), "config", "check"], ["config", "check"]):
        done = cli(*arguments, REMORA_CONFIG=str(bad))
        assert (done.code, done.out) == (17, "")
        lines = done.err.splitlines()
        assert len(lines) >= 2
        assert all(line.startswith("fault: [daemon] ") for line in lines[:2])
    done = cli("config", "check", "--json", REMORA_CONFIG=str(bad))
    assert done.code == 17
    assert json.loads(done.out)["source"] == str(bad)
    assert len(json.loads(done.out)["faults"]) >= 2


def test_config_check_asks_the_backend_about_profiles(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[profiles.x]\nmode = "rwx"\n[profiles.y]\nsise = "1"')
    done = cli("config", "check", REMORA_CONFIG=str(bad))
    assert done.code == 17
    assert [line.split()[1] for line in done.err.splitlines()] == [
        "[profiles.x]",
        "[profiles.y]",
    ]


def test_every_other_verb_tells_configuration_faults_in_one_line(cli: Cli) -> None:
    missing = "/nonexistent/remora.toml"
    for verb in VERBS:
        done = cli("--config", missing, *verb)
        assert done.code == 17
        assert done.error.startswith(f"config: 1 fault in {missing}: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(cli: Cli, shell: str) -> None:
    done = cli("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"_REMORA_COMPLETE={shell}_complete" in done.out


def test_the_bash_script_completes_verbs(node: Node) -> None:
    """The script is run by a real bash, as a shell with it would."""
    environment = node.environment(
        {
            "COMP_WORDS": "remora in",
            "COMP_CWORD": "1",
            "_REMORA_COMPLETE": "bash_complete",
        }
    )
    shown = node.run(
        "env", *(f"{k}={v}" for k, v in environment.items()), *node.remora()
    )
    assert shown.split() == ["plain,inspect"]
    script = node.run(
        "env",
        *(f"{k}={v}" for k, v in node.environment().items()),
        *node.remora("completion", "bash"),
    )
    subprocess.run(["bash", "-n"], input=script.encode(), check=True, timeout=20)
    assert "complete -o nosort -F _remora_completion remora" in script


def test_doctor(cli: Cli) -> None:
    rows = cli("doctor", "--json").json()
    assert {row["verdict"] for row in rows} <= {"ok", "warning"}
    assert rows[0].keys() == {"check", "verdict", "evidence", "hint"}
    shown = cli("doctor")
    assert shown.code == 0
    assert len(shown.out.splitlines()) == len(rows)
    done = cli("doctor", "--json", REMORA_CONTROL_SOCKET="/nonexistent/c.sock")
    assert done.code == 1
    assert "failed" in {row["verdict"] for row in json.loads(done.out)}


def test_a_reader_that_leaves_early_is_no_error(node: Node) -> None:
    assert node.create("x")
    done = subprocess.run(
        ["sh", "-c", '"$@" | true', "sh", *node.remora("ls")],
        env=node.environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    node.ok("Remove", Name="x")
