"""What another node answers is used as it is: it has a form, or is an error."""

from __future__ import annotations

import pytest

from plugin.errors import RemoteError
from plugin.peers.lines import decode, encode, read_answer, read_request
from plugin.replication.requests import CommitRequest
from tests.support.journal_trees import VOLUME

HUGE = b"1" + b"0" * 400


@pytest.mark.parametrize("told", [b"-1", b"-1" + b"0" * 18, HUGE, b"0.5", b'"1"'])
@pytest.mark.parametrize("request_", ["ahead", "send"])
def test_what_a_holder_says_it_has_carried_is_a_size(
    request_: str, told: bytes
) -> None:
    """The owner adds it to what it tells the member, which would refuse each commit."""
    with pytest.raises(RemoteError, match=f"its answer to '{request_}' cannot be read"):
        read_answer(request_, decode(b'{"carried_bytes":%b}' % told))


def test_the_largest_is_taken_by_a_member() -> None:
    carried = read_answer("ahead", {"carried_bytes": 2**56})["carried_bytes"]
    about = {"volume": VOLUME, "name": "v", "epoch": 1, "seq": 1}
    line = encode({**about, "carried_bytes": carried + 2**60})
    assert read_request(decode(line), CommitRequest).carried_bytes == carried + 2**60


@pytest.mark.parametrize("told", [b"-1", HUGE, b"1e300", b'"now"'])
def test_a_clock_tells_a_time(told: bytes) -> None:
    with pytest.raises(RemoteError, match="its answer to 'hello' cannot be read"):
        read_answer("hello", decode(b'{"wall_s":%b}' % told))


@pytest.mark.parametrize("request_", ["ahead", "send", "hello"])
def test_earlier_versions_may_say_nothing_of_it(request_: str) -> None:
    assert read_answer(request_, {}) == {}
