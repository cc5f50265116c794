"""A volume that was written to, and never copied, does not begin empty elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.owners import WAIT_S, Owner

Make = Callable[..., Owner]
NAME = "new"


def test_the_error_names_the_node_that_has_the_bytes(make_owner: Make) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    alpha.create(NAME, members="alpha,beta", interval="1s")
    beta.wait_known(NAME)
    beta.mount(NAME)
    # Long before the first commit is on its way.
    beta.kill()
    end_s = time.monotonic() + WAIT_S
    while "is in use" in (error := alpha.refused("Mount", Name=NAME, ID="one")):
        assert time.monotonic() < end_s, error
        time.sleep(0.2)
    assert "would begin empty: what was written is on node 'beta'" in error
    beta.start()
    beta.wait_member()
    beta.unmount(NAME)
    alpha.mount_at_last(NAME)
