"""Two engines make the same volume at one moment, as for a service on every node."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.support.owners import Owner


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
