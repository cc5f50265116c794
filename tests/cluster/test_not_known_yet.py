"""
A node that starts without etcd: what others have made meanwhile, Get must not deny.

Docker takes any answer without the volume for "no", and makes a local one in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from plugin.limits import GET_WAIT_S
from tests.protocol import client
from tests.protocol.node import wait_until
from tests.support.link import Link
from tests.support.owners import Owner

Make = Callable[..., Owner]


def test_a_name_that_another_node_may_have_made_is_waited_for(
    make_owner: Make, link: Link
) -> None:
    alpha, beta = make_owner("alpha", link=link), make_owner("beta")
    assert alpha.call("Create", {"Name": "known"}).json() == {}
    alpha.stop()
    link.cut()
    alpha.start()
    assert beta.call("Create", {"Name": "made"}).json() == {}
    get = client.engine_request("VolumeDriver.Get", client.go_json({"Name": "made"}))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(alpha.send, get, timeout_s=GET_WAIT_S + 5)
        wait_until(lambda: "waits for an answer" in alpha.log_tail(), "the Get waits")
        assert "Volume" in alpha.call("Get", {"Name": "known"}).json()
        assert "nobody has read etcd" in str(
            alpha.control("GET", "/v1/volumes/made").json()
        )
        link.mend()
        assert (
            client.parse(asking.result(GET_WAIT_S)).json()["Volume"]["Name"] == "made"
        )
    # From now on a "no" is one.
    assert "there is no" in alpha.call("Get", {"Name": "never-made"}).error
