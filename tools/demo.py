"""
The story of a volume, told by a real engine, the plugin and real containers.

Everything runs in a machine of its own (namespaces, as the tests have it) and is gone
at the end. Exit code 0 if every step went as said.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from pathlib import Path
from subprocess import SubprocessError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import engine as engine_support
from tests.support.daemon import Daemon, Machine
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

WIDTH = 88
FILE_MIB = 16
COLOURS = {"title": "1;36", "command": "1", "good": "32", "bad": "1;31", "quiet": "2"}
RUN = ("run", "--network", "none")
VOLUME = "data:/data"


class Story:
    """Shows commands before it runs them, and checks what comes out."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._chapters = 0

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapters += 1
        show(f"\n{self._chapters}. {title}", "title")

    def docker(self, *args: str, fails: bool = False) -> str:
        """Return what `docker ARGS...` printed; with *fails* it has to fail."""
        show(f"$ docker {shlex.join(args)}", "command")
        done = self.machine.engine.docker(*args, check=False)
        return self._printed(done.stdout, done.stderr, done.returncode, fails=fails)

    def remora(self, *args: str, fails: bool = False) -> str:
        """Return what `remora ARGS...` printed; with *fails* it has to fail."""
        show(f"$ remora {shlex.join(args)}", "command")
        done = self.machine.daemon.cli(*args, check=False)
        return self._printed(done.stdout, done.stderr, done.returncode, fails=fails)

    def _printed(self, out: str, errors: str, code: int, *, fails: bool) -> str:
        text = f"{out}{errors}".strip()
        for line in text.splitlines():
            show(f"  {line.rstrip()}", "quiet")
        if (code != 0) != fails:
            expected = "fail" if fails else "succeed"
            raise AssertionError(f"exit code {code}: this had to {expected}")
        return text


def main() -> int:
    """Return 0 if the story goes as told, else 1."""
    if missing := engine_support.missing():
        show(f"The demo needs {missing}.", "bad")
        return 1
    began = time.monotonic()
    machine: Machine | None = None
    show("Remora: a volume outlives its container, and its plugin", "title")
    show("Starting a Docker engine and the plugin in a machine of their own ...")
    try:
        machine = Machine(reconcile_interval_s=None, log_format="console")
        show(f"Ready in {time.monotonic() - began:.1f} s.", "quiet")
        tell(Story(machine))
    except (AssertionError, OSError, RuntimeError, SubprocessError) as error:
        show(f"\n{error}", "bad")
        show_log(machine)
        show("FAILED: the story did not go as it is told.", "bad")
        return 1
    finally:
        if machine is not None:
            machine.close()
    taken_s = time.monotonic() - began
    show(
        f"\nPASSED in {taken_s:.0f} s: the bytes outlived their container, and no "
        "mistake was let through.",
        "good",
    )
    return 0


def tell(story: Story) -> None:
    """Tell the story; an AssertionError says where it went otherwise."""
    written = write(story)
    crash(story, written)
    read_again(story, written)
    refuse(story)
    clean_up(story)


def write(story: Story) -> str:
    """Return the checksum of what a container wrote into a new volume."""
    story.chapter("A volume, and a container that writes into it")
    story.docker("volume", "create", "-d", "remora", "data")
    script = (
        f"dd if=/dev/urandom of=/data/file bs=1M count={FILE_MIB} 2>/dev/null; "
        "sha256sum /data/file; exec sleep 600"
    )
    container = ("--name", "writer", "-v", VOLUME, BUSYBOX_IMAGE)
    story.docker(*RUN, "-d", *container, "sh", "-c", script)
    engine = story.machine.engine
    wait_until(
        lambda: engine.out("logs", "writer"),
        timeout_s=30,
        what="the container has written its file",
    )
    checksum = story.docker("logs", "writer").split()[0]
    record = story.machine.volume("data")
    path = f"/var/lib/remora/pool/volumes/{record['id']}/live/file"
    content = story.machine.host.path(path).read_bytes()
    same(hashlib.sha256(content).hexdigest(), checksum, "the file in the pool")
    return checksum


def crash(story: Story, written: str) -> None:
    """Kill the plugin below a running container."""
    story.chapter("The plugin is killed while the container runs, and starts again")
    daemon: Daemon = story.machine.daemon
    show(f"$ kill -KILL {daemon.pid}        # remora serve", "command")
    daemon.kill()
    read = story.docker("exec", "writer", "sha256sum", "/data/file").split()[0]
    same(read, written, "the container, without a plugin,")
    show("$ remora serve &", "command")
    daemon.start()
    story.remora("ls")


def read_again(story: Story, written: str) -> None:
    """Remove the container; another one finds the same bytes."""
    story.chapter("The container is gone; a new one reads the same bytes")
    story.docker("rm", "-f", "writer")
    story.docker("ps", "-a")
    reader = ("-v", VOLUME, BUSYBOX_IMAGE, "sha256sum", "/data/file")
    same(story.docker(*RUN, "--rm", *reader).split()[0], written, "the new container")


def refuse(story: Story) -> None:
    """Show what a mistake is answered with."""
    story.chapter("Mistakes are refused, and the answer says what to do")
    create = ("volume", "create", "-d", "remora", "-o")
    error = story.docker(*create, "sizee=1G", "typo", fails=True)
    contains(error, "sizee", "size")
    sleeper = ("--name", "user", "-v", VOLUME, BUSYBOX_IMAGE, "sleep", "600")
    story.docker(*RUN, "-d", *sleeper)
    contains(story.docker("volume", "rm", "data", fails=True), "in use")
    show(
        "  The engine refused. It can be wrong after a crash, so the plugin looks "
        "for itself:"
    )
    contains(story.remora("rm", "data", "--force", fails=True), "volume-busy")


def clean_up(story: Story) -> None:
    """Remove container and volume; nothing is left."""
    story.chapter("Nothing is left behind")
    story.docker("rm", "-f", "user")
    story.docker("volume", "rm", "data")
    story.docker("volume", "ls")
    story.machine.assert_nothing_mounted(within_s=5)
    show("  no mount, no mount point, no reference", "good")


def same(found: str, wanted: str, who: str) -> None:
    """Fail unless the checksum *found* by *who* is the one *wanted*."""
    if found != wanted:
        raise AssertionError(f"{who} has {found}, written was {wanted}")
    show(f"  {who} has the same {FILE_MIB} MiB: sha256 {wanted[:16]}...", "good")


def contains(text: str, *words: str) -> None:
    """Fail unless *text* has all *words*."""
    for word in words:
        if word not in text:
            raise AssertionError(f"'{word}' was expected in: {text}")
    show("  refused, as it has to be", "good")


def show(text: str, kind: str = "") -> None:
    """Print *text*, in colour on a terminal."""
    if kind and sys.stdout.isatty():
        text = f"\033[{COLOURS[kind]}m{text}\033[0m"
    print(text, flush=True)


def show_log(machine: Machine | None) -> None:
    """Print the end of the plugin's log."""
    if machine is not None and machine.daemon.log.exists():
        lines = machine.daemon.log.read_text(errors="replace").splitlines()
        show("\n".join(["The plugin's log ends with:", *lines[-15:]]), "quiet")


if __name__ == "__main__":
    sys.exit(main())
