"""The guide to backups: its Compose file as printed, but for image and archive."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.daemon import Machine
from tests.support.guides import Command, Printed, blocks, changed
from tests.support.host import checked

pytestmark = pytest.mark.xdist_group("engine-compose")
# What the image of the guide, which no registry gives here, does with `backup`.
BACKUP = '["sh", "-euc", "tar c -f /archive/b.tar -C /backup ."]'


@pytest.fixture
def compose_file(tmp_path: Path) -> Path:
    """Return the guide's Compose file, with an archive below *tmp_path*."""
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose")
    (text,) = [each.text for each in blocks("backups.md") if each.language == "yaml"]
    for guide, here in (
        ("offen/docker-volume-backup:v2", images.BUSYBOX_IMAGE),
        ("[backup]", BACKUP),
        ("/srv/archive", str(tmp_path / "archive")),
    ):
        assert text.count(guide) == 1, guide
        text = text.replace(guide, here)
    file = tmp_path / "docker-compose.yml"
    file.write_text(f'version: "3.8"\n{text}')
    (tmp_path / "archive").mkdir()
    return file


@pytest.fixture
def rows(machine: Machine) -> Iterator[Path]:
    """Return the live directory of the volume `rows`, which a container has."""
    machine.engine.docker("volume", "create", "-d", "remora", "rows")
    machine.engine.hold("rows", "database")
    yield Path(str(machine.volume("rows")["path"]))
    machine.engine.docker("rm", "-f", "database")


def backed_up(machine: Machine, file: Path, command: Command) -> list[str]:
    """Make a backup by *command* of the guide; return the names in the archive."""
    program, *arguments = command.text.split()
    checked(
        subprocess.run(
            [program, "--project-name", "shop", *arguments],
            cwd=file.parent,
            env=machine.engine.cli_environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    )
    with tarfile.open(file.parent / "archive/b.tar") as archive:
        return sorted(name for name in archive.getnames() if "/file" in name)


@pytest.mark.printed("backups.md", "Read a copy, not the volume")
def test_a_copy_is_read(machine: Machine, tmp_path: Path, printed: Printed) -> None:
    engine = machine.engine
    engine.shell("db", "echo kept > /v/file")
    for command in printed.rest():
        text = changed(command.text, {"busybox": images.BUSYBOX_IMAGE})
        subprocess.run(
            ["sh", "-euc", text],
            cwd=tmp_path,
            env=engine.cli_environment,
            check=True,
            timeout=60,
        )
    with tarfile.open(tmp_path / "db.tar") as archive:
        assert "./db/file" in archive.getnames()


@pytest.mark.printed("backups.md", "offen/docker-volume-backup")
def test_each_run_saves_what_is_there_and_disturbs_nobody(
    machine: Machine, rows: Path, compose_file: Path, printed: Printed
) -> None:
    del rows
    engine, command = machine.engine, printed.take("docker-compose")
    engine.out("exec", "database", "sh", "-c", "echo one > /v/file1")
    assert backed_up(machine, compose_file, command) == ["./rows/file1"]
    engine.out("exec", "database", "sh", "-c", "echo two > /v/file2")
    assert backed_up(machine, compose_file, command) == ["./rows/file1", "./rows/file2"]
    assert not machine.mounted("rows-backup")
    assert machine.references("rows").live == 1
    listed = engine.out("volume", "ls", "-q", "-f", "driver=remora").split()
    assert sorted(listed) == ["rows", "rows-backup"]
    assert engine.inspect("volume", "rows-backup")["Status"]["options"] == {
        "readonly_copy": "rows"
    }
    engine.docker("volume", "rm", "rows-backup")
    assert engine.out("exec", "database", "cat", "/v/file2") == "two"


def test_what_is_shown_can_be_read_alone(machine: Machine, rows: Path) -> None:
    del rows
    engine = machine.engine
    engine.out("exec", "database", "sh", "-c", "echo one > /v/file")
    created = "volume", "create", "-d", "remora", "-o"
    engine.docker(*created, "readonly_copy=rows", "copy")
    engine.docker(*created, "readonly_copy=rows", "copy")
    script = "cat /v/file; ! touch /v/new && ! rm /v/file"
    assert engine.shell("copy", script) == "one"
    # What cannot work says why.
    refused = engine.error(*created, "readonly_copy=copy", "copy2")
    assert "is a read-only copy itself" in refused
    assert "-o readonly_copy=rows" in refused
    assert "cannot show itself" in engine.error(*created, "readonly_copy=own", "own")
    engine.docker(*created, "readonly_copy=nowhere", "early")
    refused = engine.error("run", "--rm", "-v", "early:/v", images.BUSYBOX_IMAGE, "ls")
    assert "there is no volume 'nowhere' to be read" in refused
    assert "nowhere" in engine.inspect("volume", "early")["Status"]["error"]


def test_an_empty_volume_and_an_image_with_files_there(
    machine: Machine, rows: Path
) -> None:
    del rows
    engine = machine.engine
    engine.docker(
        *("volume", "create", "-d", "remora", "-o", "readonly_copy=rows", "copy")
    )
    at = ("-v", "copy:/seed", images.BUSYBOX_IMAGE, "ls", "/seed")
    assert "read-only file system" in engine.error("run", "--rm", *at)
    nocopy = ("--mount", "type=volume,source=copy,target=/seed,volume-nocopy")
    assert engine.run(*nocopy, images.BUSYBOX_IMAGE, "ls", "/seed") == ""
    assert not machine.mounted("copy")
