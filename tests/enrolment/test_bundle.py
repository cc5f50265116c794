"""What is copied to a new machine: this checkout, as packaging/install lays it out."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from plugin import __version__
from plugin.enrolment import bundle
from tests.support.host import REPOSITORY

RUN = "from plugin.cli.main import main; main()"
IMPORTS = "import plugin.daemon.daemon, paramiko, cryptography; print('whole')"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the archive's content."""
    directory = tmp_path_factory.mktemp("bundle")
    with bundle.make().file as file:
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(directory)
    return directory


def python(unpacked: Path, *arguments: str) -> str:
    """Return what the archive's Python prints; nothing else can be imported."""
    done = subprocess.run(
        [str(unpacked / "library/bin/python3"), "-I", "-B", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd="/",
        env={},
    )
    return done.stdout.strip()


def test_it_runs_by_itself(unpacked: Path) -> None:
    assert __version__ in python(unpacked, "-c", RUN, "--version")
    assert python(unpacked, "-c", IMPORTS) == "whole"
    where = python(unpacked, "-c", "import plugin; print(plugin.__file__)")
    assert Path(where).is_relative_to(unpacked)


def test_it_has_what_the_daemon_needs_and_no_more(unpacked: Path) -> None:
    [site] = (unpacked / "library").glob("lib/python3.*/site-packages")
    assert not (site / "pytest").exists()
    assert not list(site.glob("__editable__*"))
    assert not list(unpacked.rglob("__pycache__"))
    packages = {each.name.split("-")[0] for each in site.glob("*.dist-info")}
    assert packages == locked()


def locked() -> set[str]:
    """Return the packages of the lock file, named as their metadata directories."""
    lines = (REPOSITORY / "requirements/runtime.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in lines if line[:1].isalnum()]
    return {name.replace("-", "_") for name in names}


def test_files_are_where_packaging_puts_them(unpacked: Path) -> None:
    files = unpacked / "files"
    found = {f"/{path.relative_to(files)}" for path in files.rglob("*")}
    assert found >= {
        "/usr/bin/remora",
        "/usr/lib/systemd/system/remora.service",
        "/usr/lib/systemd/system/remora.socket",
        "/usr/share/doc/remora/examples/remora.toml",
        "/usr/share/doc/remora/guides/install.md",
    }
    command = (unpacked / "library/bin/remora").read_text()
    assert command.startswith("#!/usr/lib/remora/bin/python3 -I\n")
    assert (files / "usr/bin/remora").readlink() == Path("/usr/lib/remora/bin/remora")


def test_the_digest_is_of_what_is_in_it() -> None:
    first, second = bundle.make(), bundle.make()
    with first.file, second.file:
        assert first.digest == second.digest
        assert first.size_bytes() == second.size_bytes() > 1_000_000
