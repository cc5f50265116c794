"""Which kernel the nodes run, where some do not boot or cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lab import kernels
from tests.lab.kernels import Choice, KernelFiles, UnavailableError
from tests.support.host import REPOSITORY

FAILED = "userspace - ptrace set fp regs failed, errno = 14"
ABORTS = f"echo 'Linux version'; echo '{FAILED}'; kill -ABRT $$; sleep 60"
BOOTS = f"echo 'Kernel panic - not syncing: {kernels.BOOTED}'; kill -ABRT $$"
HANGS = "echo started; sleep 60; exit"


@pytest.fixture
def fake(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


class Fakes:
    """Programs that do as a kernel does; the name of each is its suite's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []

    def files(self, suite: str, script: str) -> KernelFiles:
        program = self.directory / suite
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return KernelFiles(suite, str(program), f"/modules/{suite}-version")

    def choose(self, scripts: Mapping[str, str | None]) -> Choice:
        """Return the choice among suites; one without a script is not to be had."""

        def fetch(suite: str) -> KernelFiles:
            self.asked.append(suite)
            script = scripts[suite]
            if script is None:
                raise UnavailableError("the archive does not answer")
            return self.files(suite, script)

        return kernels.make_choice(tuple(scripts), fetch)


def test_one_that_aborts_at_boot_leads_to_the_next(fake: Fakes) -> None:
    choice = fake.choose({"newest": ABORTS, "older": BOOTS, "oldest": BOOTS})
    assert choice.files is not None
    assert choice.files.suite == "older"
    assert fake.asked == ["newest", "older"]
    assert str(choice) == (
        "lab kernel: older-version (older), not newest: newest-version does not boot "
        f"here ({FAILED})"
    )


def test_the_one_that_runs_here_is_taken_after_one_that_aborts(fake: Fakes) -> None:
    real = kernels.chosen()
    aborting = fake.files("newest", ABORTS)
    choice = kernels.make_choice(
        ("newest", "real"), lambda suite: aborting if suite == "newest" else real
    )
    assert choice.files == real


def test_one_that_hangs_is_ended(
    fake: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "TRIAL_DEADLINE_S", 1.0)
    choice = fake.choose({"newest": HANGS, "older": BOOTS})
    assert choice.files is not None
    assert choice.refused == (
        ("newest", "newest-version does not boot here (started)"),
    )
    commands = [each.read_bytes() for each in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [each for each in commands if str(tmp_path).encode() in each]


def test_an_archive_that_is_away_means_the_next(fake: Fakes) -> None:
    choice = fake.choose({"newest": None, "installed": BOOTS})
    assert choice.files is not None
    assert choice.files.suite == "installed"
    assert "newest: not to be had (the archive does not answer)" in str(choice)


def test_what_was_fetched_needs_no_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away() -> str:
        raise RuntimeError("apt knows of no archive")

    monkeypatch.setattr(kernels, "debian_archive", away)
    monkeypatch.setattr(kernels, "KERNELS", tmp_path)
    with pytest.raises(UnavailableError, match="apt knows of no archive"):
        kernels.fetched("sid")
    (tmp_path / "sid/modules/9.9").mkdir(parents=True)
    (tmp_path / "sid/linux.uml").touch()
    (tmp_path / "sid/place").write_text(str(tmp_path / "sid"))
    assert kernels.fetched("sid").version == "9.9"
    # In a cache that was moved it does not find its libc.
    (tmp_path / "sid/place").write_text("/elsewhere/sid")
    with pytest.raises(UnavailableError):
        kernels.fetched("sid")


@pytest.mark.parametrize("missing", ["kernel", "libc", "module"])
def test_a_package_that_is_not_as_expected_means_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    """What stands in another release's packages nobody knows yet."""

    def pretend(*argv: str, cwd: Path | None = None) -> None:
        if "download" in argv:
            assert cwd is not None
            (cwd / "user-mode-linux_9_amd64.deb").touch()
            (cwd / "libc6_9_amd64.deb").touch()
        if argv[:2] == ("dpkg", "-x"):
            unpacked = Path(argv[3])
            has = unpacked.name if unpacked.name != missing else ""
            if has == "kernel":
                (unpacked / "usr/bin").mkdir(parents=True)
                (unpacked / "usr/bin/linux.uml").touch()
                modules = unpacked / "usr/lib/uml/modules"
                modules.mkdir(parents=True)
                if missing != "module":
                    (modules / "9.9").mkdir()
            if has == "libc":
                (unpacked / "lib").mkdir(parents=True)
                (unpacked / "lib/libc.so.6").touch()
                (unpacked / "lib/ld-linux-x86-64.so.2").touch()

    monkeypatch.setattr(kernels, "run", pretend)
    monkeypatch.setattr(kernels, "debian_archive", lambda: "http://archive")
    monkeypatch.setattr(kernels, "KERNELS", tmp_path)
    with pytest.raises(UnavailableError):
        kernels.fetched("sid")
    assert list(tmp_path.iterdir()) == []
    missing = ""
    assert kernels.fetched("sid").version == "9.9"


def test_a_refusal_is_not_for_ever(
    fake: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk or a busy machine may have been the reason."""
    monkeypatch.setattr(kernels, "KERNELS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["kernels"])
    monkeypatch.setattr(kernels, "SUITES", ("newest",))
    scripts = {"newest": ABORTS, kernels.INSTALLED: BOOTS}
    monkeypatch.setattr(kernels, "fetched", lambda s: fake.files(s, scripts[s]))
    kernels.main()
    scripts["newest"] = BOOTS
    kernels.main()
    assert kernels.chosen().suite == kernels.INSTALLED
    monkeypatch.setattr(kernels, "CHOICE_AGE_MAX_S", -1.0)
    kernels.main()
    assert kernels.chosen().suite == "newest"


def test_if_none_boots_that_is_one_line(fake: Fakes) -> None:
    choice = fake.choose({"newest": ABORTS, "installed": "exit 3"})
    assert choice.files is None
    assert str(choice) == (
        "no kernel for the lab boots on this machine: newest: newest-version does not "
        f"boot here ({FAILED}); installed: installed-version does not boot here "
        "(exit code 3)"
    )


def test_without_a_kernel_the_labs_tests_fail_and_are_not_skipped(
    tmp_path: Path,
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != kernels.VARIABLE}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            "tests/lab/test_lab.py::test_a_command_returns_what_it_printed_and_how_it_ended",
        ],
        cwd=REPOSITORY,
        env={**environment, "REMORA_TESTS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "no kernel was chosen for this machine: run tools/setup test" in done.stdout
    assert "skipped" not in done.stdout
