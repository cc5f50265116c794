"""Options: values, profiles, and what makes two requests the same."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backends import options as parse
from backends.errors import InvalidRequestError
from backends.registry import Registry
from backends.replication_options import ReplicationOptions
from backends.rsync.backend import RsyncBackend
from plugin.limits import OPTION_VALUE_LENGTH_MAX, OPTIONS_MAX
from plugin.model import NAME_PATTERN, check_name
from plugin.volumes.options import OptionResolver

BACKEND = RsyncBackend(Path("/nowhere"), pool_id="p")


def resolver(**profiles: dict[str, str]) -> OptionResolver:
    return OptionResolver(Registry([BACKEND]), profiles)


@pytest.mark.parametrize(
    ("key", "given_value", "canonical"),
    [
        ("size", "1G", "1073741824"),
        ("size", "512m", "536870912"),
        ("size", "10GiB", "10737418240"),
        ("size", "10Gi", "10737418240"),
        ("size", " 7mb ", "7340032"),
        ("size", "10000000", "10000000"),
        ("mode", "750", "0750"),
        ("mode", "0o2770", "2770"),
        ("uid", "0042", "42"),
        ("interval", "10", "10s"),
        ("interval", "500ms", "500ms"),
        ("interval", "2m", "120s"),
        ("members", "b, a,b", "a,b"),
        ("failover", "refuse", "refuse"),
        ("replicas", "03", "3"),
    ],
)
def test_values_have_one_canonical_spelling(
    key: str, given_value: str, canonical: str
) -> None:
    assert BACKEND.parse_options({key: given_value}) == {key: canonical}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "abc"),
        ("size", "0"),
        ("size", "-1G"),
        ("size", "1.5G"),
        ("size", "10i"),
        ("size", "9" * 40),
        ("mode", "999"),
        ("mode", "rwx"),
        ("mode", "00000750"),
        ("uid", "root"),
        ("uid", "-1"),
        ("uid", str(2**32 - 1)),
        ("interval", "0"),
        ("interval", "fast"),
        ("members", "a,,b"),
        ("members", "../x"),
        ("failover", "maybe"),
        ("replicas", "0"),
        ("replicas", "17"),
        ("fence", ""),
    ],
)
def test_malformed_values_are_refused_with_what_is_expected(
    key: str, value: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"option '{key}': must be"):
        BACKEND.parse_options({key: value})


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=30), max_size=5))
def test_any_options_are_parsed_or_refused_in_one_line(raw: dict[str, str]) -> None:
    try:
        parsed = resolver().resolve(raw).options
    except InvalidRequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2500
    else:
        assert BACKEND.parse_options(parsed) == parsed


def test_replication_options_have_one_reading() -> None:
    default = ReplicationOptions.of(BACKEND.default_options())
    assert default == ReplicationOptions.of({})
    assert (default.copies, default.interval_s, default.min_acks) == (2, 10.0, 0)
    assert (default.accept_loss, default.fence) == (True, "freeze")
    given = {"replicas": "3", "interval": "500ms", "min_acks": "1"}
    said = ReplicationOptions.of({**given, "failover": "refuse", "fence": "kill"})
    assert (said.copies, said.interval_s, said.min_acks) == (3, 0.5, 1)
    assert (said.accept_loss, said.fence) == (False, "kill")
    named = ReplicationOptions.of({"replicas": "3", "members": "a,b,c,d"})
    assert (named.copies, named.members) == (4, frozenset("abcd"))


def test_what_cannot_be_read_of_a_record_gives_nothing_up() -> None:
    damaged = {"interval": "soon", "replicas": "", "min_acks": "-1", "fence": "kill"}
    read = ReplicationOptions.of({**damaged, "failover": "x", "members": ", ,"})
    assert read == ReplicationOptions.of(
        {"fence": "kill", "replicas": "16", "min_acks": "15", "failover": "refuse"}
    )
    assert ReplicationOptions.of({"fence": "?"}).fence == "freeze"


@given(st.text(max_size=300))
def test_a_name_is_taken_whole_or_refused(name: str) -> None:
    try:
        assert check_name(name) == name
    except InvalidRequestError as error:
        assert str(error).isprintable()
    else:
        assert "/" not in name
        assert name not in ("", ".", "..")
        assert name.isascii()


@given(st.from_regex(NAME_PATTERN, fullmatch=True))
def test_every_name_of_the_pattern_is_taken(name: str) -> None:
    assert check_name(name) == name


def test_what_is_asked_for_wins_over_profile_and_defaults() -> None:
    resolved = resolver(fast={"interval": "2s", "mode": "0700"}).resolve(
        {"profile": "fast", "mode": "750"}
    )
    assert resolved.options["interval"] == "2s"
    assert resolved.options["mode"] == "0750"
    assert resolved.options["failover"] == "accept_loss"
    assert resolved.requested == {"mode": "0750", "backend": "rsync"}


def test_the_default_profile_applies_where_none_is_named() -> None:
    both = resolver(default={"uid": "7"}, other={})
    assert both.resolve({}).options["uid"] == "7"
    assert both.resolve({"profile": "other"}).options["uid"] == "0"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"profile": "slow"}, "unknown profile 'slow'"),
        ({"backend": "tape"}, "unknown backend 'tape'"),
        ({"Sizee": "1G"}, "unknown option 'sizee'"),
    ],
)
def test_unknown_words_are_named(raw: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        resolver().resolve(raw)


def test_keys_are_read_in_any_case() -> None:
    assert resolver().resolve({"MODE": "700"}).options["mode"] == "0700"


def test_too_many_and_too_long_options_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        resolver().resolve({f"k{n}": "v" for n in range(OPTIONS_MAX + 1)})
    with pytest.raises(InvalidRequestError, match="'mode': its value has"):
        resolver().resolve({"mode": "7" * (OPTION_VALUE_LENGTH_MAX + 1)})
    with pytest.raises(InvalidRequestError, match="its name has"):
        resolver().resolve({"k" * 1000: "v"})


def test_faults_of_profiles_are_all_found() -> None:
    faults = resolver(a={"sizee": "1"}, b={}, c={"mode": "x"}).faults()
    assert len(faults) == 2
    assert faults[0].startswith("[profiles.a]")
    assert faults[1].startswith("[profiles.c]")


def test_a_difference_names_the_key_and_both_values() -> None:
    assert parse.differences({"a": "1"}, {"a": "1"}) == ""
    assert parse.differences({"a": "1"}, {"a": "2"}) == "a is 2, asked for 1"
    assert parse.differences({}, {"a": "2"}) == "a is 2, asked for not set"


def test_a_duration_parser_refuses_zero() -> None:
    with pytest.raises(ValueError, match="above zero"):
        parse.duration("0ms")


def test_a_mode_that_lost_its_zero_is_never_taken_for_another_one() -> None:
    """Compose hands 0777 without quotes on as "511"; no mode shuts its owner out."""
    for mode in range(0o10000):
        if mode & 0o700 == 0o700:
            with pytest.raises(ValueError, match=f"reads {mode:04o} as {mode}"):
                parse.octal_mode(str(mode))
            assert parse.octal_mode(f"{mode:04o}") == f"{mode:04o}"


@pytest.mark.parametrize(("text", "mode"), [("755", "0755"), ("0511", "0511")])
def test_a_mode_without_its_zero_is_one_if_the_owner_may_do_all(
    text: str, mode: str
) -> None:
    assert parse.octal_mode(text) == mode
