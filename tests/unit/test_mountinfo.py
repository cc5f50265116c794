"""Lines of mountinfo as the kernel writes them, and as nobody should believe them."""

from __future__ import annotations

import pytest

from backends.system.mountinfo import parse_mountinfo

LINE = (
    "36 35 98:0 /{root} /mnt/{point} rw,noatime shared:7 - ext3 /dev/{source} rw,data=1"
)


@pytest.mark.parametrize(
    "name", ["plain", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"]
)
def test_a_name_ends_no_line_but_with_a_line_feed(name: str) -> None:
    line = LINE.format(root=name, point=name, source=name)
    first, second = parse_mountinfo(f"{line}\n{line}\n")
    assert first == second
    assert (first.root, first.mount_point) == (f"/{name}", f"/mnt/{name}")
    assert (first.source, first.peer_group) == (f"/dev/{name}", "shared:7")


def test_what_the_kernel_escapes_is_plain_again() -> None:
    line = LINE.format(root=r"a\040b", point=r"a\011\012\134", source=r"\043x")
    (entry,) = parse_mountinfo(line)
    assert (entry.root, entry.mount_point) == ("/a b", "/mnt/a\t\n\\")
    assert (entry.device, entry.filesystem) == ("98:0", "ext3")
    assert (entry.source, entry.super_options) == ("/dev/#x", "rw,data=1")


@pytest.mark.parametrize("text", ["", "\n", "36 35 98:0", "1 2 3 4 5 6 7 - ext4"])
def test_what_is_cut_short_is_no_mount(text: str) -> None:
    assert list(parse_mountinfo(text)) == []
