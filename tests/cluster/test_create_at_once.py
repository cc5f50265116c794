"""A Create meets what another node has begun with the volume of that name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from plugin.store.base import Put
from tests.support.owners import Owner, Records


def test_each_create_is_answered_with_the_one_volume(alpha: Owner, beta: Owner) -> None:
    with ThreadPoolExecutor(2) as threads:
        for number in range(8):
            body = {"Name": f"at-once-{number}", "Opts": {"replicas": "2"}}
            answers = [
                threads.submit(each.call, "Create", body) for each in (alpha, beta)
            ]
            assert Counter(each.result().error for each in answers) == {"": 2}
            beta.wait_known(body["Name"])
            alpha.wait_known(body["Name"])
            ids = {each.get(body["Name"])["Status"]["id"] for each in (alpha, beta)}
            assert len(ids) == 1
    for number in range(8):
        alpha.ok("Remove", Name=f"at-once-{number}")


def test_the_removal_of_a_node_that_is_dead_is_ended_first(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    removed = alpha.create("db", replicas="1")
    beta.wait_known("db")
    alpha.stop()
    stored = records.store.get("volumes/db")
    assert stored is not None
    value = stored.value.replace(b'"phase":"ready"', b'"phase":"removing"')
    records.store.transact([], [Put(stored.key, value)])
    beta.wait_known("db", phase="removing")
    made = beta.create("db", replicas="1")
    assert made != removed
    beta.mount("db")
    assert records.store.get(f"tomb/{removed}") is not None
