"""The rules hold in all worlds of small scopes and on long ways; wrong rules do not."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.chance import seed

from .explore import go, search, wander
from .mutants import (
    BACKUPS_MUTANTS,
    MEMBERS_MUTANTS,
    MUTANTS,
    OLDER_RECORDS,
    ON_A_WAY,
    TIME_MUTANTS,
)
from .world import Scope

FENCES = pytest.mark.parametrize("fenced", [True, False])
# Where wrong rules are looked for, from the smallest scope to the largest.
HUNTED_IN = (
    Scope(nodes=2, epochs=1, writes=1, seqs=2),
    Scope(nodes=2, epochs=3, writes=1, seqs=1),
    Scope(nodes=2, epochs=3, writes=1, seqs=1, accept_loss=True),
    Scope(nodes=2, epochs=3, writes=1, seqs=1, removal=True),
)
WIDE = {"epochs": 7, "writes": 7, "seqs": 4}


@FENCES
@pytest.mark.parametrize("accept_loss", [True, False])
@pytest.mark.parametrize("removal", [True, False])
def test_every_world_of_a_small_scope_is_right(
    fenced: bool, accept_loss: bool, removal: bool
) -> None:
    scope = Scope(
        nodes=2,
        epochs=2,
        writes=2,
        seqs=1,
        fenced=fenced,
        accept_loss=accept_loss,
        removal=removal,
    )
    found = search(scope, states_max=400_000)
    assert not found.fault, found
    assert found.exhausted
    assert found.states > 10_000


@FENCES
def test_the_first_worlds_of_a_large_scope_are_right(fenced: bool) -> None:
    found = search(Scope(fenced=fenced), states_max=60_000)
    assert not found.fault, found
    assert found.states > 60_000


@FENCES
@pytest.mark.parametrize("accept_loss", [True, False])
@pytest.mark.parametrize("removal", [True, False])
def test_long_ways_are_right(fenced: bool, accept_loss: bool, removal: bool) -> None:
    scope = Scope(fenced=fenced, accept_loss=accept_loss, removal=removal, **WIDE)
    found = wander(scope, seed=seed(), walks=750, length=100)
    assert not found.fault, found
    assert found.states > 10_000


@FENCES
def test_the_first_worlds_in_which_members_come_and_go_are_right(fenced: bool) -> None:
    scope = Scope(nodes=2, epochs=3, writes=1, seqs=1, fenced=fenced, membership=True)
    found = search(scope, states_max=60_000)
    assert not found.fault, found
    assert found.states > 60_000


@FENCES
@pytest.mark.parametrize("accept_loss", [True, False])
def test_long_ways_on_which_members_come_and_go_are_right(
    fenced: bool, accept_loss: bool
) -> None:
    scope = Scope(fenced=fenced, accept_loss=accept_loss, membership=True, **WIDE)
    found = wander(scope, seed=seed(), walks=750, length=150)
    assert not found.fault, found
    assert found.states > 10_000


@FENCES
def test_long_ways_on_which_pools_come_back_from_backups_are_right(
    fenced: bool,
) -> None:
    scope = Scope(fenced=fenced, membership=True, backups=True, **WIDE)
    found = wander(scope, seed=seed(), walks=300, length=150)
    assert not found.fault, found
    assert found.states > 10_000


@FENCES
def test_long_ways_on_which_records_become_older_are_right(fenced: bool) -> None:
    """What nobody but a copy knows is not passed over, set apart or written over."""
    scope = Scope(fenced=fenced, records=True, **WIDE)
    found = wander(scope, seed=seed(), walks=300, length=150)
    assert not found.fault, found
    assert found.states > 10_000


def test_a_commit_of_an_epoch_that_older_records_do_not_know_is_refused() -> None:
    """What it has grown out of nothing tells: the copy may have what it has not."""
    way = (
        "acquire c|vote c for c|crash c|acquire c|vote c for c|begin c 2 from 0.0|"
        "go live c|seal c 2.1|release c|follow c|receive 2.1 on b|acquire b|"
        "vote b for b|vote a for b|the lease ends|refuse 2.1 on a|acquire c|"
        "vote b for c|vote c for c|begin c 4 from 2.1|dump|go live c|write c|crash b|"
        "sync c 4.1|receive 4.1 on b|write c|the lease ends|receive 4.1 on a|"
        "seal c 4.2|acquire a|vote a for a|vote b for a|vote c for a|the lease ends|"
        "crash a|acquire a|vote a for a|begin a 6 from 4.1|go live a|write a|"
        "publish a 4.1|write a|load|sync a 6.1|receive 6.1 on c"
    )
    steps = way.split("|")
    found = go(Scope(fenced=False, records=True, **WIDE), steps)
    assert (found.fault, found.states) == ("", len(steps) - 1)


@FENCES
def test_the_first_worlds_in_which_nodes_are_slow_are_right(fenced: bool) -> None:
    scope = Scope(nodes=2, writes=1, seqs=1, fenced=fenced, accept_loss=True, time=True)
    found = search(scope, states_max=40_000)
    assert not found.fault, found
    assert found.states > 40_000


@FENCES
@pytest.mark.parametrize("accept_loss", [True, False])
@pytest.mark.parametrize("membership", [True, False])
def test_long_ways_on_which_nodes_are_slow_are_right(
    fenced: bool, accept_loss: bool, membership: bool
) -> None:
    """Votes come late or never, before and after a lease ends, and writers go on."""
    scope = Scope(
        fenced=fenced, accept_loss=accept_loss, membership=membership, time=True, **WIDE
    )
    found = wander(scope, seed=seed(), walks=300, length=150)
    assert not found.fault, found
    assert found.states > 10_000


@pytest.mark.long
@FENCES
@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("membership", [True, False])
@pytest.mark.parametrize("accept_loss", [True, False])
def test_millions_of_steps_are_right(
    fenced: bool, accept_loss: bool, membership: bool, time: bool
) -> None:
    scope = Scope(
        fenced=fenced, accept_loss=accept_loss, membership=membership, time=time, **WIDE
    )
    found = wander(scope, seed=seed(), walks=20_000, length=150)
    assert not found.fault, found
    assert found.states > 1_000_000


@pytest.mark.long
@FENCES
def test_a_million_worlds_are_right(fenced: bool) -> None:
    found = search(Scope(fenced=fenced, seqs=2), states_max=1_000_000)
    assert not found.fault, found


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_rule_is_found(mutant: str) -> None:
    faults = []
    for scope in HUNTED_IN:
        wrong = dataclasses.replace(scope, rules=MUTANTS[mutant])
        faults.append(search(wrong, states_max=70_000).fault)
        if faults[-1]:
            return
    wrong = Scope(fenced=False, rules=MUTANTS[mutant], **WIDE)
    assert wander(wrong, seed=1, walks=4_000, length=100).fault


@pytest.mark.parametrize("mutant", MEMBERS_MUTANTS)
def test_a_wrong_rule_of_members_is_found(mutant: str) -> None:
    wrong = MEMBERS_MUTANTS[mutant]
    for accept_loss in (True, False):
        scope = Scope(accept_loss=accept_loss, membership=True, rules=wrong, **WIDE)
        if wander(scope, seed=1, walks=4_000, length=100).fault:
            return
    pytest.fail("nothing was found")


@pytest.mark.parametrize("mutant", BACKUPS_MUTANTS)
def test_a_wrong_rule_of_backups_is_found(mutant: str) -> None:
    wrong = BACKUPS_MUTANTS[mutant]
    scope = Scope(nodes=2, membership=True, backups=True, rules=wrong, **WIDE)
    # Which walks there are depends on the order of sets, which each process has anew.
    for number in range(10):
        if wander(scope, seed=number, walks=1_000, length=100).fault:
            return
    pytest.fail("nothing was found")


@pytest.mark.parametrize("mutant", TIME_MUTANTS)
def test_a_wrong_rule_of_time_is_found(mutant: str) -> None:
    wrong = TIME_MUTANTS[mutant]
    for fenced in (False, True):
        scope = Scope(fenced=fenced, accept_loss=True, time=True, rules=wrong, **WIDE)
        if wander(scope, seed=1, walks=3_000, length=150).fault:
            return
    pytest.fail("nothing was found")


def test_older_records_that_nobody_notices_are_found() -> None:
    scope = Scope(nodes=2, records=True, rules=OLDER_RECORDS, **WIDE)
    assert wander(scope, seed=1, walks=3_000, length=100).fault


@pytest.mark.parametrize("mutant", ON_A_WAY)
def test_a_wrong_rule_is_found_at_the_end_of_a_way(mutant: str) -> None:
    """The right rules refuse what the last step would be."""
    wrong, way = ON_A_WAY[mutant]
    steps = way.split("|")
    time = "asks for" in way
    scope = Scope(nodes=2, accept_loss=time, time=time, records=not time, **WIDE)
    found = go(scope, steps)
    assert (found.fault, found.states) == ("", len(steps) - 1)
    assert go(dataclasses.replace(scope, rules=wrong), steps).fault
