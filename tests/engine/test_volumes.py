"""What users do with volumes, through the real engine and the real command line."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from tests.support.daemon import Daemon, Machine
    from tests.support.engine import Engine

pytestmark = pytest.mark.xdist_group("engine-volumes")

VALID_NAMES = ("A9", "under_score", "dots.and-dashes", "x" * 255)
HOSTILE_NAMES = (
    *("../../x", "a/b", "/etc", "..", ".hidden", "-dash", "_a", "with space"),
    *("line\nbreak", "umläut", "nul\\0", "a:b", "$(touch x)", "%2e%2e", "y" * 256),
)


def create(engine: Engine, name: str, **options: str) -> None:
    pairs = [
        part for key, value in options.items() for part in ("-o", f"{key}={value}")
    ]
    assert engine.out("volume", "create", "-d", "remora", *pairs, name) == name


def test_a_new_container_reads_what_a_removed_one_wrote(engine: Engine) -> None:
    create(engine, "data")
    engine.shell("data", "dd if=/dev/urandom of=/v/f bs=64k count=16 2>&1; sync")
    first = engine.shell("data", "md5sum /v/f")
    assert len(first) > 32
    assert engine.shell("data", "md5sum /v/f") == first


def test_run_makes_the_volume_it_names(engine: Engine) -> None:
    engine.shell("made-by-run", "echo 1 > /v/f")
    assert engine.inspect("volume", "made-by-run")["Driver"] == "remora"


def test_copy_up_brings_owners_modes_and_links(
    machine: Machine, engine: Engine
) -> None:
    engine.docker(
        *("create", "--network", "none", "--volume-driver", "remora"),
        *("-v", "filled:/seed", BUSYBOX_IMAGE),
    )
    # Copy-up happens at `create`; its Mount and Unmount leave nothing.
    machine.assert_nothing_mounted()
    listing = engine.shell(
        "filled",
        "cd /v; stat -c '%n %u %g %a %F' plain owned deep/er/file link; cat owned link",
    )
    assert listing.splitlines() == [
        "plain 0 0 644 regular file",
        "owned 1000 1001 640 regular file",
        "deep/er/file 0 0 755 regular file",
        "link 0 0 777 symbolic link",
        "owned",
        "from the image",
    ]


def test_copy_up_leaves_a_volume_with_content_alone(engine: Engine) -> None:
    engine.shell("mine", "echo kept > /v/plain")
    seen = engine.run(
        *("--volume-driver", "remora", "-v", "mine:/seed"),
        *(BUSYBOX_IMAGE, "sh", "-c", "ls /seed; cat /seed/plain"),
    )
    assert seen.split() == ["plain", "kept"]


def test_nocopy_gives_an_empty_volume(engine: Engine) -> None:
    seen = engine.run(
        *("--volume-driver", "remora", "-v", "empty:/seed:nocopy"),
        *(BUSYBOX_IMAGE, "ls", "-A", "/seed"),
    )
    assert seen == ""


def test_two_containers_share_one_mount_until_the_last(
    machine: Machine, engine: Engine
) -> None:
    engine.hold("shared", "one")
    engine.hold("shared", "two")
    assert len(machine.mount_points()) == 1
    assert machine.references("shared").live == 2
    engine.docker("exec", "one", "sh", "-c", "echo from-one > /v/f")
    assert engine.out("exec", "two", "cat", "/v/f") == "from-one"
    engine.docker("stop", "one")
    assert machine.references("shared").live == 1
    assert machine.mounted("shared")
    assert engine.out("exec", "two", "cat", "/v/f") == "from-one"
    engine.docker("stop", "two")
    machine.assert_nothing_mounted()


def test_one_container_mounts_a_volume_twice(machine: Machine, engine: Engine) -> None:
    engine.hold("twice", "held", "--volume-driver", "remora", "-v", "twice:/w:ro")
    assert machine.references("twice").live == 2
    engine.docker("exec", "held", "sh", "-c", "echo x > /v/f")
    assert engine.out("exec", "held", "cat", "/w/f") == "x"
    done = engine.docker("exec", "held", "touch", "/w/g", check=False)
    assert "Read-only file system" in done.stderr
    engine.docker("rm", "-f", "held")
    machine.assert_nothing_mounted()


def test_volumes_from(machine: Machine, engine: Engine) -> None:
    engine.hold("lent", "owner")
    engine.docker("exec", "owner", "sh", "-c", "echo lent > /v/f")
    assert engine.run("--volumes-from", "owner", BUSYBOX_IMAGE, "cat", "/v/f") == "lent"
    assert machine.references("lent").live == 1


def test_inspect_shows_the_mount_point_whether_mounted_or_not(
    machine: Machine, engine: Engine
) -> None:
    create(engine, "shown", uid="1000", mode="0750")
    idle = engine.inspect("volume", "shown")
    assert (idle["Driver"], idle["Scope"]) == ("remora", "local")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", idle["CreatedAt"])
    assert idle["Status"]["options"]["uid"] == "1000"
    engine.hold("shown", "held")
    busy = engine.inspect("volume", "shown")
    assert [busy["Mountpoint"]] == machine.mount_points() == [idle["Mountpoint"]]
    mounts = engine.inspect("container", "held")["Mounts"]
    assert [(each["Name"], each["Driver"]) for each in mounts] == [("shown", "remora")]
    assert engine.out("exec", "held", "stat", "-c", "%u %a", "/v") == "1000 750"


def test_ls_knows_volumes_that_the_engine_did_not_make(
    engine: Engine, daemon: Daemon
) -> None:
    create(engine, "by-engine")
    daemon.cli("create", "by-cli")
    listed = engine.out("volume", "ls", "-f", "driver=remora", "--format", "{{.Name}}")
    assert listed.split() == ["by-cli", "by-engine"]
    assert engine.shell("by-cli", "echo usable") == "usable"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "sise=10G",
            "unknown option 'sise' for backend 'rsync' (hint: did you mean 'size'? ",
        ),
        (
            "mode=rwx",
            "option 'mode': must be octal permissions such as 0750, not 'rwx'",
        ),
        ("backend=tape", "'tape'"),
        ("profile=absent", "unknown profile 'absent'"),
        ("uid=-1", "option 'uid': must be a numeric id"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    engine: Engine, daemon: Daemon, option: str, expected: str
) -> None:
    error = engine.error("volume", "create", "-d", "remora", "-o", option, "wrong")
    assert "\n" not in error
    assert "invalid-request: " in error
    assert expected in error
    assert daemon.cli_json("ls") == []
    assert engine.out("volume", "ls", "-q") == ""


def test_create_again_with_the_same_options_succeeds_with_others_is_refused(
    daemon: Daemon,
) -> None:
    call = {"Name": "again", "Opts": {"mode": "700"}}
    assert daemon.call("Create", call) == {}
    assert daemon.call("Create", {"Name": "again", "Opts": {"mode": "0700"}}) == {}
    error = daemon.call("Create", {"Name": "again", "Opts": {"mode": "0755"}})["Err"]
    assert error.startswith("volume-exists: ")
    assert "mode" in error and "0700" in error and "0755" in error


@pytest.mark.parametrize("name", VALID_NAMES)
def test_every_valid_name_has_a_whole_life(engine: Engine, name: str) -> None:
    create(engine, name)
    engine.shell(name, "echo x > /v/f")
    engine.docker("volume", "rm", name)
    assert engine.out("volume", "ls", "-q") == ""


def test_hostile_names_are_refused_and_touch_nothing(
    machine: Machine, engine: Engine, daemon: Daemon
) -> None:
    def everything() -> list[str]:
        command = "find /var/lib/remora -path '*/trash/*' -o -not -name '*.db*' -print"
        return sorted(machine.host.run(["sh", "-c", command]).stdout.splitlines())

    before = everything()
    for name in HOSTILE_NAMES:
        for method in ("Create", "Mount", "Unmount", "Remove", "Get", "Path"):
            answer = daemon.call(method, {"Name": name, "ID": "0" * 64})
            assert answer.get("Err"), (method, name)
            assert "\n" not in answer["Err"]
        # An empty or strange name may be the command line's own matter: it has to fail.
        engine.error("volume", "create", "-d", "remora", "--", name)
    assert everything() == before


def test_a_volume_in_use_is_not_removed(machine: Machine, engine: Engine) -> None:
    engine.hold("used", "held")
    engine.docker("exec", "held", "sh", "-c", "echo kept > /v/f")
    assert "volume is in use" in engine.error("volume", "rm", "used")
    assert "volume is in use" in engine.error("volume", "rm", "-f", "used")
    # What the engine holds back by itself is held back by us, too.
    error = machine.daemon.call("Remove", {"Name": "used"})["Err"]
    assert error.startswith("volume-busy: ")
    assert "\n" not in error
    assert machine.volume("used")["phase"] == "ready"
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"


def test_rm_removes_the_bytes(machine: Machine, engine: Engine) -> None:
    engine.shell("gone", "echo secret > /v/f")
    directory = machine.volume("gone")["path"]
    assert machine.host.path(directory).is_dir()
    engine.docker("volume", "rm", "gone")
    assert not machine.host.path(directory).exists()
    assert engine.shell("gone", "ls -A /v") == ""
    engine.docker("volume", "rm", "-f", "never-there")


def test_prune_takes_no_volume_of_ours(engine: Engine, daemon: Daemon) -> None:
    create(engine, "unused")
    engine.docker("volume", "prune", "-f")
    assert [row["name"] for row in daemon.cli_json("ls")] == ["unused"]
    assert engine.out("volume", "ls", "-q") == "unused"


def test_anonymous_volumes_go_with_their_container(
    machine: Machine, engine: Engine
) -> None:
    engine.docker(
        *("run", "--rm", "-d", "--name", "anonymous", "--network", "none"),
        *("--volume-driver", "remora", "-v", "/v", BUSYBOX_IMAGE),
    )
    names = engine.out("volume", "ls", "-q").split()
    assert len(names) == 1
    assert re.fullmatch("[0-9a-f]{64}", names[0])
    engine.docker("stop", "anonymous")
    engine.docker("wait", "anonymous", check=False)
    machine.assert_nothing_mounted(within_s=5)
    wait_until(
        lambda: engine.out("volume", "ls", "-q") == "",
        timeout_s=5,
        what="the engine removes the volume after its container",
    )


def test_a_container_that_cannot_start_leaves_no_mount(
    machine: Machine, engine: Engine
) -> None:
    error = engine.error(
        *("run", "--name", "broken", "--network", "none", "--volume-driver", "remora"),
        *("-v", "kept:/v", BUSYBOX_IMAGE, "/no/such/program"),
    )
    assert "no such file" in error
    machine.assert_nothing_mounted()


def test_cp_into_a_container_that_never_ran(machine: Machine, engine: Engine) -> None:
    container = engine.out(
        *("create", "--network", "none", "--volume-driver", "remora"),
        *("-v", "copied:/v", BUSYBOX_IMAGE),
    )
    source = machine.host.work / "file"
    source.write_text("copied in\n")
    engine.docker("cp", str(source), f"{container}:/v/file")
    machine.assert_nothing_mounted()
    assert engine.shell("copied", "cat /v/file") == "copied in"


def test_eight_volumes_at_once(machine: Machine, engine: Engine) -> None:
    failures: list[str] = []

    def live(number: int) -> None:
        name = f"volume-{number}"
        try:
            engine.shell(name, f"echo {number} > /v/f")
            assert engine.shell(name, "cat /v/f") == str(number)
            engine.docker("volume", "rm", name)
        except AssertionError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=live, args=(each,)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    machine.assert_nothing_mounted()


def test_a_profile_gives_options(machine: Machine, engine: Engine) -> None:
    path = machine.host.path("/etc/remora/remora.toml")
    path.write_text('[profiles.private]\nmode = "0700"\nuid = 70\n')
    try:
        machine.daemon.restart()
        create(engine, "from-profile", profile="private", uid="71")
        seen = engine.shell("from-profile", "stat -c '%a %u' /v")
    finally:
        path.unlink()
        machine.daemon.restart()
    assert seen == "700 71"


def test_the_verbs_of_the_command_line(
    machine: Machine, engine: Engine, daemon: Daemon
) -> None:
    create(engine, "verbs")
    engine.hold("verbs", "held")
    row = daemon.cli_json("inspect", "verbs")
    assert [row["mountpoint"]] == machine.mount_points()
    assert daemon.cli_json("ls") == [row]
    status = daemon.cli_json("status")
    assert (status["volumes"], status["mounted"]) == (1, 1)
    assert "verbs" in daemon.cli("ls").stdout
    refused = daemon.cli("rm", "--force", "verbs", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (12, 1)
    assert refused.stderr.startswith("remora: volume-busy: ")
    assert daemon.cli("inspect", "absent", check=False).returncode == 11
    findings = json.loads(daemon.cli("doctor", "--json").stdout)
    assert {each["verdict"] for each in findings} <= {"ok", "warning"}
    assert daemon.cli_json("config", "check")["faults"] == []
    assert not any(daemon.cli_json("repair").values())
    assert machine.mounted("verbs")
    engine.docker("rm", "-f", "held")
    assert daemon.cli_json("rm", "--force", "verbs") == {"removed": "verbs"}
    assert engine.out("volume", "ls", "-q") == ""


def test_import_takes_over_a_local_volume(
    machine: Machine, engine: Engine, daemon: Daemon
) -> None:
    engine.docker(
        *("run", "--rm", "--network", "none", "-v", "old:/seed", BUSYBOX_IMAGE),
        *("sh", "-c", "mkfifo /seed/pipe; ln /seed/plain /seed/hard"),
    )
    engine.docker("run", "-d", "--name", "user", "-v", "old:/v", BUSYBOX_IMAGE)
    refused = daemon.cli("import", "old", "--name", "new", check=False)
    assert refused.returncode == 12
    engine.docker("rm", "-f", "user")
    daemon.cli("import", "old", "--remove-source")
    assert engine.inspect("volume", "old")["Driver"] == "remora"
    seen = engine.shell(
        "old", "cd /v; stat -c '%n %u %g %a %h %F' owned pipe hard; cat plain"
    )
    assert seen.splitlines() == [
        "owned 1000 1001 640 1 regular file",
        "pipe 0 0 644 1 fifo",
        "hard 0 0 644 2 regular file",
        "from the image",
    ]
    # Docker's own volume of that name is used in place of ours, without a word.
    engine.docker("volume", "create", "twin")
    daemon.cli("create", "twin")
    [twin] = [
        each
        for each in json.loads(daemon.cli("doctor", "--json").stdout)
        if "'twin'" in each["evidence"]
    ]
    assert (twin["check"], twin["verdict"]) == ("volume", "warning")
