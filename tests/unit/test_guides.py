"""Each command that the guides print is run by a test: `tests/support/guides.py`."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from plugin.cli.main import remora
from plugin.config import load
from tests.support import guides
from tests.support.guides import Claim, Command

# What no test can run here, and why; each is (page, section, beginning).
NOT_RUN = {
    ("engines.md", "Running the tests under another engine", ""): (
        "the tests themselves"
    ),
    ("engines.md", "SELinux", ""): "no kernel here has SELinux",
    ("kubernetes.md", "On the hosts", "CSI=yes make install"): (
        "tests/engine/test_install.py does it; no machine has a kubelet and systemd"
    ),
    ("kubernetes.md", "Snapshots, and a backup of a claim", ""): (
        "the server that Go 1.19 makes of Kubernetes 1.20 dies of a kind it is taught"
    ),
    ("kubernetes.md", "On the hosts", "systemctl"): (
        "no machine has a kubelet and systemd"
    ),
}


def excused(command: Command) -> list[tuple[str, str, str]]:
    return [each for each in NOT_RUN if Claim("", *each[:2], (each[2],)).holds(command)]


def test_each_command_is_run_by_a_test() -> None:
    claims = guides.claims()
    nobody = [
        f"{each.page} ({each.section}): {each.text}"
        for each in guides.all_commands()
        if not any(claim.holds(each) for claim in claims) and not excused(each)
    ]
    assert nobody == []


def test_no_claim_and_no_excuse_is_for_nothing() -> None:
    found = guides.all_commands()
    claims = guides.claims()
    assert [each for each in claims if not any(map(each.holds, found))] == []
    used = {reason for each in found for reason in excused(each)}
    assert used == NOT_RUN.keys()
    # What is run needs no excuse.
    both = [c for c in found if excused(c) and any(each.holds(c) for each in claims)]
    assert both == []


@pytest.mark.parametrize("page", guides.pages())
def test_only_known_kinds_of_blocks_are_used(page: str) -> None:
    known = {*guides.SCRIPTS, *guides.TYPED, *guides.OTHERS}
    for block in guides.blocks(page):
        assert block.language in known, f"{page}: {block.text}"
        if block.language in guides.OTHERS:
            typed = re.findall(r"^[$] .*", block.text, re.MULTILINE)
            assert typed == [], f"{page}: a command in no block for commands"


def test_what_is_typed_is_understood() -> None:
    text = """
# One
```console
# first \\
    --second    # why
shown
$ cat > file <<END
inside
END
# third && fourth
```
## Two
- a list

  ```sh
  whole
  script
  ```
"""
    found = [
        command
        for block in guides.blocks_of("page.md", text)
        for command in guides.commands_of(block)
    ]
    assert found == [
        Command("page.md", "One", "first --second", ("shown",)),
        Command("page.md", "One", "cat > file <<END\ninside\nEND"),
        Command("page.md", "One", "third && fourth"),
        Command("page.md", "Two", "whole\nscript\n"),
    ]


def test_the_packages_for_a_machine_without_a_network_are_those_of_the_set_up() -> None:
    setup = (guides.REPOSITORY / "tools/setup").read_text()
    [packages] = re.findall(r"^packages=\(([a-z0-9 -]+)\)$", setup, re.MULTILINE)
    assert packages in guides.pages()["install.md"].read_text().replace("\n", " ")


@pytest.mark.parametrize("page", guides.pages())
def test_configurations_are_taken(page: str, tmp_path: Path) -> None:
    for block in guides.blocks(page):
        # Podman's has other sections.
        if block.language == "toml" and "[engine" not in block.text:
            path = tmp_path / "remora.toml"
            path.write_text(block.text)
            load(path, {"REMORA_ETCD": "https://10.0.0.1:2379"})


# What stands within a line


def spoken(page: str) -> list[str]:
    """Return the calls of `remora` that *page* tells of, outside of blocks."""
    text = re.sub(r"```.*?```", "", guides.pages()[page].read_text(), flags=re.DOTALL)
    text = text.replace("\\|", "|")
    return re.findall(r"`(?:# )?(?:REMORA_\w+=\S+ )?(remora [a-z][^`]*)`", text)


@pytest.mark.parametrize("page", guides.pages())
def test_verbs_and_options_that_are_named_are_there(page: str) -> None:
    assert [fault for each in spoken(page) if (fault := fault_of(each))] == []


def fault_of(call: str) -> str:
    """Return what the command would not know of *call*, or ''."""
    command: click.Command = remora
    words = call.partition("|")[0].split()[1:]
    while words and isinstance(command, click.Group) and words[0].islower():
        name = words.pop(0).rstrip(",")
        if name not in command.commands:
            return f"{call}: no verb {name}"
        command = command.commands[name]
    known = {option for each in command.params for option in each.opts}
    known |= {"--help"}
    used = {each.partition("=")[0] for each in words if re.match(r"--?[a-z]", each)}
    return f"{call}: {used - known}" if used - known else ""
