"""
Which kernel the nodes run: the newest of Debian's that boots on this machine.

Not each kernel starts on each processor: those before 6.16 save too little of the
registers of one with AMX and end at boot. So each is tried before it is taken, from
Debian's newest suite down to this machine's own release. A newer suite's program needs
that suite's libc; both are unpacked into `CACHE` and nothing of the system is touched.

`tools/setup test` runs this module, which writes down what it has chosen; the labs, and
the report of the tests, read that. REMORA_LAB_KERNEL=SUITE chooses another one that was
fetched. With --others it prints the suites besides the chosen one whose kernels boot.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tests.support.archive import debian_archive
from tests.support.host import SYSTEM_PATH
from tests.support.images import CACHE

VARIABLE: Final = "REMORA_LAB_KERNEL"
KERNELS: Final = CACHE / "kernels"
# Newest first. The last one is what apt has installed from this machine's release.
SUITES: Final = ("sid", "testing", "stable")
INSTALLED: Final = "installed"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH_DEADLINE_S: Final = 180.0
TRIAL_DEADLINE_S: Final = 30.0
# A suite that was refused, for whatever reason, is tried again after this.
CHOICE_AGE_MAX_S: Final = 86_400.0
# A kernel keeps its memory in an unlinked file, sparse; this much has to fit at least.
MEMORY_FILES_BYTES_MIN: Final = 2 * 2**30
# What a kernel says in the end if it could run its first process, which only ends.
BOOTED: Final = "Attempted to kill init! exitcode=0x00000000"
# Before any other argument. Older kernels do not know it; `auto` tries what is faster.
FIRST_ARGUMENTS: Final = ("seccomp=auto",)
REASON_LENGTH_MAX: Final = 160
# Whatever is wrong with an archive, or with what it has, means the next candidate.
FAULTS: Final = (
    *(OSError, subprocess.SubprocessError, RuntimeError),
    *(ValueError, StopIteration),
)
# The kernel must not be process 1 of its namespace: that one cannot abort.
WAIT_FOR: Final = '"$@"; exit $?'


class UnavailableError(Exception):
    """A suite's kernel could not be fetched; the text says why."""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel: its program, and the directory with its modules."""

    suite: str
    program: str
    modules: str

    @property
    def version(self) -> str:
        """The release that it calls itself."""
        return Path(self.modules).name


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was chosen, and why nothing newer."""

    machine: str
    made_at_s: float
    # None if no kernel boots.
    files: KernelFiles | None
    refused: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return one line for people."""
        reasons = "; ".join(f"{suite}: {why}" for suite, why in self.refused)
        if self.files is None:
            return f"no kernel for the lab boots on this machine: {reasons}"
        line = f"lab kernel: {self.files.version} ({self.files.suite})"
        return f"{line}, not {reasons}" if reasons else line


def chosen() -> KernelFiles:
    """
    Return the kernel that the labs of this process run.

    Raises:
        RuntimeError: none was chosen, or none boots; the text is one line for people.
    """
    if suite := os.environ.get(VARIABLE):
        try:
            return cached(suite)
        except UnavailableError as error:
            raise RuntimeError(
                f"{VARIABLE}={suite}: {error}: python -m tests.lab.kernels --others "
                "fetches what there is"
            ) from error
    choice = last_choice()
    if choice is None:
        raise RuntimeError(
            "no kernel was chosen for this machine: run tools/setup test"
        )
    if choice.files is None:
        raise RuntimeError(str(choice))
    return choice.files


def last_choice() -> Choice | None:
    """Return what was chosen on this machine, if that is still there."""
    try:
        choice = msgspec.json.decode(_choice_path().read_bytes(), type=Choice)
    except (OSError, msgspec.DecodeError):
        return None
    if choice.files is not None and not Path(choice.files.program).exists():
        return None
    return choice


def make_choice(
    suites: Sequence[str],
    fetch: Callable[[str], KernelFiles],
    *,
    machine: str = "",
) -> Choice:
    """Return the first of *suites* whose kernel *fetch* gets and this machine boots."""
    refused, files = [], None
    for suite in suites:
        try:
            candidate = fetch(suite)
        except UnavailableError as error:
            refused.append((suite, f"not to be had ({error})"))
            continue
        if why := trial(candidate):
            refused.append((suite, f"{candidate.version} does not boot here ({why})"))
            continue
        files = candidate
        break
    return Choice(machine, time.time(), files, tuple(refused))


def memory_directory(otherwise: Path) -> Path:
    """Return where kernels keep their memory: not on disk if there is a choice."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free >= MEMORY_FILES_BYTES_MIN:
        return shared
    return otherwise


def trial(files: KernelFiles) -> str:
    """Return why the kernel does not boot on this machine, or '' if it does."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix="trial-") as work:
        arguments = [
            *(files.program, *FIRST_ARGUMENTS, "mem=256M"),
            *("rootfstype=hostfs", "rootflags=/", "ro", "init=/bin/true"),
            *("con=null", "con0=null,fd:1", "ssl=null", f"uml_dir={work}"),
        ]
        try:
            done = subprocess.run(
                [
                    *("unshare", "--pid", "--fork", "--kill-child", "--"),
                    *("bash", "-c", WAIT_FOR, "trial", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TRIAL_DEADLINE_S,
                env={"PATH": SYSTEM_PATH, "TMPDIR": str(memory_directory(Path(work)))},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            return _reason(said, f"it did not end within {TRIAL_DEADLINE_S:.0f} s")
        except OSError as error:
            return str(error)
    said = done.stdout.decode(errors="replace")
    return "" if BOOTED in said else _reason(said, f"exit code {done.returncode}")


def _reason(said: str, otherwise: str) -> str:
    """Return the line of what a kernel *said* that tells best why it ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "errno" in line or "panic" in line.lower()]
    line = (telling or lines[-1:] or [otherwise])[0]
    return line[:REASON_LENGTH_MAX]


def fetched(suite: str) -> KernelFiles:
    """
    Return the kernel of *suite*, unpacked in the cache; the first call fetches it.

    Raises:
        UnavailableError: it could not be fetched.
    """
    with suppress(UnavailableError):
        return cached(suite)
    target = KERNELS / suite
    with tempfile.TemporaryDirectory(dir=KERNELS, prefix="fetch-") as work:
        part = Path(work) / "part"
        try:
            _unpack(suite, Path(work), part)
            _link_with_own_libc(part, target)
        except FAULTS as error:
            raise UnavailableError(_failure(error)) from error
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    return cached(suite)


def cached(suite: str) -> KernelFiles:
    """
    Return the kernel of *suite* that was fetched.

    Raises:
        UnavailableError: it was not.
    """
    if suite == INSTALLED:
        return _installed()
    target = KERNELS / suite
    program, place = target / "linux.uml", target / "place"
    # The program names the place of its libc: in a cache that was moved it is lost.
    if not program.exists() or place.read_text() != str(target):
        raise UnavailableError("it was not fetched")
    modules = _only(target / "modules")
    return KernelFiles(suite, str(program), str(modules))


def _installed() -> KernelFiles:
    program = shutil.which("linux.uml", path=SYSTEM_PATH)
    modules = max(Path("/usr/lib/uml/modules").glob("*"), default=None)
    if program is None or modules is None:
        raise UnavailableError("the package user-mode-linux is not installed")
    return KernelFiles(INSTALLED, program, str(modules))


def _unpack(suite: str, work: Path, part: Path) -> None:
    """Download the kernel and the libc of *suite*, and make the directory *part*."""
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {debian_archive()} {suite} main\n")
    (work / "lists/partial").mkdir(parents=True)
    options = [
        *("-qq", "-oAcquire::Check-Valid-Until=false", "-oAPT::Sandbox::User=root"),
        *(f"-oDir::Etc::sourcelist={sources}", "-oDir::Etc::sourceparts=/dev/null"),
        *(f"-oDir::State::lists={work / 'lists'}", "-oDir::State::status=/dev/null"),
        *("-oDir::Cache::pkgcache=", "-oDir::Cache::srcpkgcache="),
        # Without this an index that could not be fetched is only a warning.
        "-oAPT::Update::Error-Mode=any",
    ]
    run("apt-get", *options, "update")
    run("apt-get", *options, "download", "user-mode-linux", "libc6", cwd=work)
    for package, inside in (("user-mode-linux", "kernel"), ("libc6", "libc")):
        (archive,) = work.glob(f"{package}_*.deb")
        run("dpkg", "-x", str(archive), str(work / inside))
    part.mkdir()
    libraries = next((work / "libc").glob("**/libc.so.6")).parent
    libraries.rename(part / "libc")
    (work / "kernel/usr/bin/linux.uml").rename(part / "linux.uml")
    (work / "kernel/usr/lib/uml/modules").rename(part / "modules")
    version = _only(part / "modules").name
    root = work / "root/lib/modules"
    root.mkdir(parents=True)
    (root / version).symlink_to(part / "modules" / version)
    run("depmod", "-b", str(work / "root"), version)


def _link_with_own_libc(part: Path, target: Path) -> None:
    """Let the program in *part* find its libc once all of it is at *target*."""
    # Started by hand through its ld.so it would measure the wrong address space.
    loader = next((part / "libc").glob("ld-linux*.so.*"))
    run(
        *("patchelf", "--set-interpreter", str(target / "libc" / loader.name)),
        *("--set-rpath", str(target / "libc"), str(part / "linux.uml")),
    )
    (part / "place").write_text(str(target))


def run(*argv: str, cwd: Path | None = None) -> None:
    """Run *argv*; what it prints is shown only in the error if it fails."""
    subprocess.run(
        argv,
        cwd=cwd,
        env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=FETCH_DEADLINE_S,
        check=True,
    )


def _failure(error: Exception) -> str:
    """Return one line about *error*."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    lines = [line for line in (said or str(error)).splitlines() if line.strip()]
    return (lines or [repr(error)])[0][:REASON_LENGTH_MAX]


def _only(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


@functools.cache
def _machine() -> str:
    """Return a digest of what decides whether a kernel boots: processor and kernel."""
    facts = [platform.release()]
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "flags")):
            facts.append(line)
    return hashlib.sha256("\n".join(sorted({*facts})).encode()).hexdigest()[:16]


def _choice_path() -> Path:
    return KERNELS / f"choice-{_machine()}.json"


@contextmanager
def _locked() -> Iterator[None]:
    """Let one process at a time fetch and choose."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    with (KERNELS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _chosen_anew(*, fresh: bool) -> Choice:
    """Return the choice for this machine, and write it down."""
    if fresh:
        for suite in SUITES:
            shutil.rmtree(KERNELS / suite, ignore_errors=True)
    choice = make_choice((*SUITES, INSTALLED), fetched, machine=_machine())
    part = _choice_path().with_suffix(".part")
    part.write_bytes(msgspec.json.encode(choice))
    part.rename(_choice_path())
    return choice


def main() -> None:
    """Choose, unless that was done; see the module's text."""
    parser = argparse.ArgumentParser(description="Choose the kernel of the lab's nodes")
    parser.add_argument(
        "--fresh", action="store_true", help="fetch all anew; not while a lab runs"
    )
    parser.add_argument(
        "--others", action="store_true", help="print which others boot here"
    )
    arguments = parser.parse_args()
    with _locked():
        choice = last_choice()
        age_s = time.time() - choice.made_at_s if choice else 0.0
        stale = choice is None or choice.files is None
        stale = stale or bool(choice.refused and age_s > CHOICE_AGE_MAX_S)
        if arguments.fresh or stale:
            choice = _chosen_anew(fresh=arguments.fresh)
            print(choice, file=sys.stderr)
    if choice.files is None:
        sys.exit(1)
    if arguments.others:
        _print_others(choice.files)


def _print_others(files: KernelFiles) -> None:
    """Print the older kernels that boot, and to the error output why others do not."""
    versions = {files.version}
    for suite in (*SUITES, INSTALLED):
        if suite == files.suite:
            continue
        with _locked():
            choice = make_choice((suite,), fetched)
        if choice.files is None:
            for name, why in choice.refused:
                print(f"{name}: {why}", file=sys.stderr)
        elif choice.files.version not in versions:
            versions.add(choice.files.version)
            print(suite)


if __name__ == "__main__":
    main()
