"""What is decoded by threads at once (processes, for they crash), and from others."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from backends.system.decoding import from_json, from_objects, msgpack_decoder
from plugin.ownership.state import Commit, Head
from plugin.peers.lines import error_from_json
from tests.support.host import PYTHON_ENVIRONMENT

PROCESSES = 12
PROGRAM = """
import json, sys, threading
from backends.system.decoding import from_json, from_objects
from plugin.ownership.state import Epoch, Head
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)

def decode():
    barrier.wait()
    for text, kind in ((HEAD, Head), (EPOCH, Epoch)):
        DECODE

HEAD = b'{"epoch": 1, "committed": [1, 1], "holders": ["a"]}'
EPOCH = b'{"base": [1, 1], "owner": "a"}'
threads = [threading.Thread(target=decode) for _ in range(8)]
for each in threads:
    each.start()
for each in threads:
    each.join()
"""


def exit_codes(decode: str) -> set[int]:
    """Return how processes end in which eight threads *decode* at once."""
    program = PROGRAM.replace("DECODE", decode)
    return {
        subprocess.run(
            [sys.executable, "-c", program],
            env=PYTHON_ENVIRONMENT,
            capture_output=True,
            timeout=60,
            check=False,
        ).returncode
        for _ in range(PROCESSES)
    }


@pytest.mark.parametrize(
    "decode",
    ["from_json(text, kind)", "from_objects(json.loads(text), kind)"],
)
def test_threads_meet_at_the_first_record_of_a_type(decode: str) -> None:
    assert exit_codes(decode) == {0}


def test_what_is_decoded() -> None:
    head = from_json(b'{"epoch": 2, "committed": [1, 3]}', Head)
    assert head == Head(epoch=2, committed=Commit(1, 3))
    assert from_objects({"epoch": "2"}, Head, strict=False).epoch == 2
    assert msgpack_decoder(Commit).decode(msgspec.msgpack.encode(Commit(1, 3))).seq == 3
    for wrong in (b"{", b"[]", b'{"epoch": "2"}'):
        with pytest.raises(msgspec.DecodeError):
            from_json(wrong, Head)
    with pytest.raises(msgspec.ValidationError):
        from_objects({"epoch": "2"}, Head)


@pytest.mark.parametrize(
    "said",
    [
        {"code": "x\n2026-11-30T00:00:00 error   FORGED"},
        {"code": ""},
        {"code": "a" * 65},
        {"exit_code": 0},
        {"exit_code": 256},
    ],
    ids=str,
)
def test_an_error_of_another_node_forges_no_line_and_is_no_success(
    said: dict[str, object],
) -> None:
    fields = {"code": "NFS-IO", "cause": "why", "exit_code": 21}
    told = error_from_json(fields)
    assert (told.code, told.exit_code) == ("NFS-IO", 21)
    error = error_from_json({**fields, **said})
    assert (error.code, error.exit_code) == ("internal", 1)
    assert "\n" not in str(error)
