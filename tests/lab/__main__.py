"""A lab to play with: `python -m tests.lab` boots an NFS server and two nodes."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import subprocess
import sys
import termios
import tty
from typing import TYPE_CHECKING

from .lab import Lab, Topology, missing
from .nfs import EXPORTS, SERVER, NfsServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .node import Node

COMMAND_DEADLINE_S = 600.0
HELP = """
  NODE COMMAND...   run a shell command in a node; `all` means every node
  NODE              an interactive shell in a node, until `exit`
  cut NODE          silently drop its packets        heal            whole network again
  power-off NODE    fail its power                   boot NODE       switch it on again
  console NODE      show its kernel's messages       help, exit
"""


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab")
    parser.add_argument("--nodes", default="alpha,beta", help="names, with commas")
    parser.add_argument("--no-server", action="store_true", help="without NFS server")
    arguments = parser.parse_args()
    if lacking := missing():
        parser.error(f"needs {lacking}")
    names = arguments.nodes.split(",")
    specs = names if arguments.no_server else [SERVER, *names]
    with Lab(Topology.of(*specs)) as lab:
        print(f"booting {len(lab.nodes)} nodes ...", flush=True)
        lab.boot()
        if not arguments.no_server:
            server = NfsServer(lab["server"])
            server.prepare()
            server.start_nfs()
        _introduce(lab)
        for line in _lines():
            try:
                _obey(lab, line)
            except (AssertionError, ConnectionError, RuntimeError) as error:
                print(error)
            except subprocess.TimeoutExpired as error:
                print(f"killed after {error.timeout} s")
    return 0


def _introduce(lab: Lab) -> None:
    for node in lab.nodes.values():
        print(f"  {node.name:10} {node.ipv4:12} {node.ipv6}")
    if "server" in lab.nodes:
        print("exports:")
        for path, options in EXPORTS.items():
            print(f"  {path:28} {options}")
    print(f"files and consoles: {lab.work}\n{HELP}", flush=True)


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("lab> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            return
        if line.strip() == "exit":
            return
        if line.strip():
            yield line.strip()


def _obey(lab: Lab, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "help":
        print(HELP)
    elif word == "heal":
        lab.heal()
    elif word == "all":
        for node in lab.nodes.values():
            print(f"-- {node.name}")
            _run(node, rest)
    elif word in lab.nodes:
        if rest:
            _run(lab[word], rest)
        else:
            _shell(lab[word])
    elif word in {"cut", "power-off", "boot", "console"} and rest in lab.nodes:
        node = lab[rest]
        if word == "console":
            print(node.console.read_text(errors="replace"))
        else:
            {"cut": node.cut, "power-off": node.power_off, "boot": node.boot}[word]()
    else:
        print(f"not understood: {shlex.quote(line)}; try `help`")


def _run(node: Node, command: str) -> None:
    done = node.run(["sh", "-c", command], timeout_s=COMMAND_DEADLINE_S, check=False)
    print(done.stdout + done.stderr, end="")
    if done.returncode:
        print(f"exit {done.returncode}")
    sys.stdout.flush()


def _shell(node: Node) -> None:
    """Connect this terminal with a shell in *node* until that ends."""
    if not sys.stdin.isatty():
        print("a shell needs a terminal")
        return
    terminal = node.terminal
    shell = node.start_terminal(*os.get_terminal_size())
    with _raw_terminal():
        while shell.poll() is None:
            ready, _, _ = select.select([sys.stdin, terminal], [], [], 0.2)
            if sys.stdin in ready:
                terminal.sendall(os.read(sys.stdin.fileno(), 4096))
            if terminal in ready:
                os.write(sys.stdout.fileno(), terminal.recv(65536))
    print()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main())
