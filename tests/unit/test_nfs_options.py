"""NFS options: canonical form, merging, the built-in driver's form, refusals."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from backends.base import Volume
from backends.errors import InvalidRequestError, VolumeExistsError
from backends.nfs import options
from backends.nfs.backend import NfsBackend
from backends.nfs.records import volume_of
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.model import VolumeRecord
from plugin.volumes.options import (
    AllowedOptions,
    OptionResolver,
    require_same_options,
)

NFS = NfsBackend(Path("/nowhere"), node="n")
SHARE = {"server": "nas", "share": "/export"}


def resolver(**profiles: dict[str, str]) -> OptionResolver:
    backends = [RsyncBackend(Path("/nowhere"), pool_id="p"), NFS]
    return OptionResolver(Registry(backends), profiles)


@pytest.mark.parametrize(
    ("given_options", "canonical"),
    [
        ({"SubDir": "a/${volume.name}"}, {"subDir": "a/${volume.name}"}),
        ({"share": "/export//with space/"}, {"share": "/export/with space"}),
        ({"server": "[fd00::1]"}, {"server": "fd00::1"}),
        ({"nfsopts": "timeo=50; retrans=2"}, {"mountOptions": "retrans=2,timeo=50"}),
        ({"o": "vers=4.1,ro"}, {"nfsvers": "4.1", "readOnly": "true"}),
        ({"nconnect": "4", "sec": "krb5p"}, {"mountOptions": "nconnect=4,sec=krb5p"}),
        ({"noresvport": "true"}, {"mountOptions": "noresvport"}),
        ({"mountPermissions": "770"}, {"mode": "0770"}),
        ({"mountOptions": "soft,hard"}, {"mountOptions": "hard"}),
    ],
)
def test_options_have_one_canonical_form(
    given_options: dict[str, str], canonical: dict[str, str]
) -> None:
    parsed = options.parse_options(given_options)
    assert parsed == canonical
    assert options.parse_options(parsed) == parsed


@pytest.mark.parametrize(
    ("given_options", "said"),
    [
        ({"subDir": "../x"}, "option 'subDir'"),
        ({"subDir": "/x"}, "option 'subDir'"),
        ({"subDir": "a//b"}, "option 'subDir'"),
        ({"subDir": ""}, "option 'subDir'"),
        ({"subDir": "a,b"}, "option 'subDir'"),
        ({"subDir": ".dvol/x"}, "option 'subDir'"),
        ({"subDir": "${volume.id}"}, "template"),
        ({"subDir": "a\nb"}, "option 'subDir'"),
        ({"share": "export"}, "option 'share'"),
        ({"share": "/a/../b"}, "option 'share'"),
        ({"server": "a b"}, "option 'server'"),
        ({"server": "-oproxy"}, "option 'server'"),
        ({"nfsvers": "5"}, "option 'nfsvers'"),
        ({"size": "1G"}, "set a quota on the server"),
        ({"create": "true"}, "option 'create'"),
        ({"o": "a b"}, "malformed"),
        ({"o": "$(reboot)"}, "malformed"),
        ({"onDelete": "maybe"}, "option 'onDelete'"),
        ({"device": "x"}, "option 'device'"),
        ({"device": "nfs://nas/x"}, "must be :/PATH or SERVER:/PATH"),
        ({"device": '":/x"', "o": "addr=nas"}, "must be :/PATH or SERVER:/PATH"),
        ({"server": "nas:2049"}, "a port is 'o: port=PORT'"),
        ({"device": ":/x", "o": "addr=1.2.3.4:2049"}, "a port is 'o: port=PORT'"),
        ({"o": "rw,no_root_squash"}, "it is the server's, in its /etc/exports"),
        ({"o": "nocopy"}, "it belongs to the container's mount"),
        ({"type": "cifs"}, "option 'type'"),
        ({"shar": "/x"}, "unknown option 'shar'"),
    ],
)
def test_what_is_wrong_is_named(given_options: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options.parse_options(given_options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_options_name_every_valid_one() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options.parse_options({"sizee": "1G"})
    for key in ("server", "share", "subDir", "mountOptions", "nconnect", "profile"):
        assert key in caught.value.hint


def test_mount_options_are_merged_one_by_one_and_the_volume_wins() -> None:
    merged = options.merge_options(
        {"mountOptions": "hard,timeo=600"}, {"mountOptions": "soft,nconnect=2"}
    )
    assert merged["mountOptions"] == "nconnect=2,soft,timeo=600"


def test_the_built_in_drivers_form_is_understood() -> None:
    resolved = resolver().resolve(
        {"type": "nfs", "o": "addr=10.0.0.1,rw,nfsvers=4.1", "device": ":/data"}
    )
    assert resolved.backend is NFS
    assert resolved.options["server"] == "10.0.0.1"
    assert resolved.options["share"] == "/data"
    assert resolved.options["mountMode"] == "direct"
    assert resolved.options["nfsvers"] == "4.1"
    named = resolver().resolve({"type": "nfs4", "device": "[fd00::1]:/data"})
    assert named.options["server"] == "fd00::1"


def test_what_kubernetes_has_is_understood() -> None:
    given = {**SHARE, "mountPermissions": "0", "onDelete": "Delete"}
    line = {"mountOptions": "nfsvers=4.1,fatal_neterrors=ENETDOWN:ENETUNREACH"}
    taken = resolver().resolve({**given, **line}).options
    assert (taken["mode"], taken["onDelete"]) == ("0755", "delete")
    assert taken["mountOptions"] == "fatal_neterrors=ENETDOWN:ENETUNREACH"


def test_a_profile_gives_the_share_and_the_backend() -> None:
    fast = resolver(nas={**SHARE, "backend": "nfs"})
    resolved = fast.resolve({"profile": "nas", "mode": "2770"})
    assert resolved.backend is NFS
    assert resolved.options["mode"] == "2770"
    assert resolved.options["share"] == "/export"
    assert fast.profiles_of("nfs") == [SHARE]
    assert fast.profiles_of("rsync") == []


def test_a_default_profile_of_another_backend_is_left_out() -> None:
    both = resolver(default={"interval": "2s"})
    assert "interval" not in both.resolve(SHARE).options
    nas = resolver(default={**SHARE, "backend": "nfs"})
    assert nas.resolve({"backend": "rsync"}).options["interval"] == "10s"
    assert nas.resolve({}).backend is NFS


def test_a_named_profile_of_another_backend_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="profile 'fast' is for"):
        resolver(fast={"interval": "2s"}).resolve({"profile": "fast", **SHARE})


@pytest.mark.parametrize(
    ("name", "options_given", "on_delete"),
    [
        ("5f" * 32, {}, "delete"),
        ("5f" * 32, {"onDelete": "archive"}, "archive"),
        ("5f" * 32, {"profile": "kept"}, "retain"),
        ("5F" * 32, {}, "retain"),
        ("5f" * 31, {}, "retain"),
    ],
)
def test_the_directory_of_an_anonymous_volume_goes_with_it(
    name: str, options_given: dict[str, str], on_delete: str
) -> None:
    """`docker run --rm -v /data` leaves a directory each time otherwise."""
    kept = {**SHARE, "onDelete": "retain"}
    found = resolver(default=SHARE, kept=kept).resolve(options_given, name=name)
    assert found.options["onDelete"] == on_delete
    assert "onDelete" not in found.requested or options_given


def test_a_share_must_be_named_at_the_latest_when_it_is_needed() -> None:
    with pytest.raises(InvalidRequestError, match="needs the option 'share'"):
        options.require_complete({"server": "nas"})


def test_a_volumes_name_fills_the_template() -> None:
    volume = Volume(
        "id", "db", {**options.DEFAULTS, "subDir": "a/${volume.name}/b"}, ""
    )
    assert options.subdir_of(volume) == "a/db/b"


@pytest.mark.parametrize(
    ("server", "subdir", "source"),
    [
        ("nas", "db", "nas:/export/db"),
        ("nas", "", "nas:/export"),
        ("fd00::1", "a/b", "[fd00::1]:/export/a/b"),
    ],
)
def test_the_source_is_what_mount_wants(server: str, subdir: str, source: str) -> None:
    export = options.export_of({**options.DEFAULTS, **SHARE, "server": server})
    assert export.source(subdir) == source


def test_a_port_among_the_mount_options_is_the_port() -> None:
    complete = {**options.DEFAULTS, **SHARE, "mountOptions": "hard,port=12049"}
    assert options.export_of(complete).port == 12049
    assert options.export_of({**options.DEFAULTS, **SHARE}).port == 2049


def test_dangerous_mount_options_are_warned_of() -> None:
    told = options.warnings_of({"mountOptions": "nolock,soft,timeo=5"})
    assert [each.partition(":")[0] for each in told] == ["soft", "nolock"]


@given(
    st.dictionaries(
        st.sampled_from(["o", "subDir", "share", "server", "device"]),
        st.text(max_size=40),
    )
)
def test_any_value_is_parsed_to_something_stable_or_refused(
    raw: dict[str, str],
) -> None:
    try:
        parsed = options.parse_options(raw)
    except InvalidRequestError as error:
        assert str(error).isprintable()
    else:
        assert options.parse_options(parsed) == parsed
        for value in parsed.values():
            assert value.isprintable()


@pytest.mark.parametrize(
    ("entries", "version", "kept"),
    [("minorversion=1", "4.1", None), ("sec=null", "4", "sec=null")],
)
def test_a_record_of_an_older_version_means_what_it_meant(
    entries: str, version: str, kept: str | None
) -> None:
    recorded = {"server": "nas", "share": "/x", "nfsvers": "4", "mountOptions": entries}
    found = options.parse_options(recorded)
    assert (found["nfsvers"], found.get("mountOptions")) == (version, kept)


def recorded(
    name: str, *, options: dict[str, str], requested: dict[str, str]
) -> VolumeRecord:
    return VolumeRecord(
        id="6c0f7f0c-4f2e-4f0e-9a53-3f5a0a8a3f11",
        name=name,
        backend="nfs",
        requested=requested,
        options=options,
        created_at="2026-01-02T03:04:05Z",
        phase="ready",
        node="n",
    )


def test_a_named_copy_of_an_anonymous_volume_is_retained() -> None:
    anonymous = "a" * 64
    found = resolver().resolve({**SHARE, "onDelete": "archive"}, name=anonymous)
    chosen = recorded(anonymous, requested=found.requested, options=found.options)
    found = resolver().resolve({**SHARE, "uid": "70"}, name=anonymous)
    assert found.options["onDelete"] == "delete"
    source = recorded(anonymous, requested=found.requested, options=found.options)
    copied = resolver().resolve({"from": anonymous}, source, name="kept").options
    assert (copied["onDelete"], copied["uid"]) == ("retain", "70")
    copied = resolver().resolve({"from": anonymous}, chosen, name="kept").options
    assert copied["onDelete"] == "archive"


def test_a_request_is_the_same_as_an_older_version_has_recorded_it() -> None:
    asked = {"server": "nas", "share": "/x", "o": "_netdev,soft"}
    now = resolver().resolve(asked)
    older = {**now.requested, "mountOptions": "_netdev,soft"}
    record = recorded("v", requested=older, options=now.options)
    require_same_options(now, record)
    other = resolver().resolve({**asked, "o": "hard"})
    with pytest.raises(VolumeExistsError, match="mountOptions is soft, asked for hard"):
        require_same_options(other, record)
    marker = {
        "id": record.id,
        "name": "v",
        "created_at": record.created_at,
        "options": now.options,
        "requested": older,
    }
    assert volume_of(marker, now.options).requested == now.requested


def test_what_is_told_as_ignored_never_spoils_a_record() -> None:
    given = {"server": "nas", "share": "/x", "ignored": f'"{"a" * 2000}",bg'}
    found = options.parse_options(given)
    assert found["ignored"] == "bg"
    assert options.parse_options(found) == found
    told = ",".join(f"x-{number:050}" for number in range(30))
    cut = options.parse_options({"server": "nas", "share": "/x", "o": told})
    options.warnings_of(options.parse_options(cut))


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"o": "addr=203.0.113.9"}, "server"),
        ({"O": "soft;suid"}, "suid"),
        ({"share": "203.0.113.9:/x"}, "server"),
        ({"o": "nosuid,ro"}, ""),
        ({"device": ":/x", "o": "addr=203.0.113.9"}, ""),
    ],
)
def test_what_a_value_stands_for_has_to_be_allowed_too(
    asked: dict[str, str], refused: str
) -> None:
    """Else who may write a line of mount options would mount any server by it."""
    allowed = AllowedOptions(("profile", "o", "share", "device"), (NFS,))
    if not refused:
        assert allowed.checked(asked) == asked
        return
    with pytest.raises(InvalidRequestError, match=f"option '{refused}' may not be"):
        allowed.checked({"profile": "nas", **asked})
    everything = AllowedOptions((*allowed.names, refused), (NFS,))
    assert everything.checked(asked) == asked


@pytest.mark.parametrize(
    ("share", "place"),
    [
        ("nas:/export/volumes", ("nas", "/export/volumes")),
        (" nas:/export/volumes/ ", ("nas", "/export/volumes")),
        ("[fd00::1]:/x", ("fd00::1", "/x")),
        ("nas:/", ("nas", "/")),
    ],
)
def test_a_share_is_named_as_mount_names_it(share: str, place: tuple[str, str]) -> None:
    found = options.place_of(share)
    assert (found["server"], found["share"]) == place


@pytest.mark.parametrize(
    "share", ["nowhere", ":/x", "nfs://nas/x", "//nas/x", "a b:/x", "nas:2049:/x", ""]
)
def test_what_names_no_share_is_refused(share: str) -> None:
    with pytest.raises(InvalidRequestError):
        options.place_of(share)
