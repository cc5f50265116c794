"""Records that are older than the copies: nobody begins a volume empty by them."""

from __future__ import annotations

import pytest

from plugin.ownership.refusals import explained
from plugin.ownership.rules import choose
from plugin.ownership.state import EMPTY, Commit, Head, Lineage, RefusedError

HEAD = Head(epoch=4, owner="beta", phase="recovering", members=("alpha", "beta"))
UNKNOWN = Commit(3, 1)


@pytest.mark.parametrize("accept_loss", [True, False])
def test_bytes_that_the_records_do_not_know_keep_a_volume_from_beginning_empty(
    accept_loss: bool,
) -> None:
    votes = {"alpha": UNKNOWN, "beta": EMPTY}
    with pytest.raises(RefusedError) as caught:
        choose(HEAD, Lineage({}), votes, accept_loss=accept_loss)
    assert (caught.value.reason, caught.value.node) == ("stale-epoch", "alpha")
    del votes["alpha"]
    chosen = choose(HEAD, Lineage({}), votes, accept_loss=accept_loss)
    assert chosen.base == EMPTY


def test_the_refusal_names_the_node_whose_copy_knows_more() -> None:
    told = explained("v", RefusedError("stale-epoch", node="a"), {"a": "alpha"}.get)
    assert "copy on node 'alpha'" in str(told)
    own = explained("v", RefusedError("stale-epoch", epoch=3), {}.get)
    assert "its copy on this node" in str(own)
