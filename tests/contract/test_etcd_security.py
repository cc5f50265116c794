"""TLS, mutual TLS, users, and tokens that expire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Put
from plugin.store.etcd.errors import RefusedError, UnknownOutcomeError
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.support import etcd

pytestmark = [pytest.mark.xdist_group("etcd"), pytest.mark.long]


class Certificates:
    """A CA of one's own, and what it has signed."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.authority = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._openssl(
            *("req", "-x509", "-subj", f"/CN={name}", "-days", "2"),
            *("-keyout", self._key, "-out", self.authority),
            *self._curve(),
        )

    def signed(
        self, name: str, *, subject: str, address: str = ""
    ) -> tuple[Path, Path]:
        """Return a certificate for server and client use, and its key."""
        certificate = self._directory / f"{name}.pem"
        key = self._directory / f"{name}.key"
        request = self._directory / f"{name}.request"
        extensions = self._directory / f"{name}.extensions"
        # etcd's gateway shows the server's certificate to the server itself.
        text = "extendedKeyUsage=serverAuth,clientAuth\n"
        extensions.write_text(
            text + (f"subjectAltName=IP:{address}\n" if address else "")
        )
        self._openssl(
            *("req", "-new", "-subj", subject, "-keyout", key, "-out", request),
            *self._curve(),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-out", certificate),
            *("-CA", self.authority, "-CAkey", self._key, "-CAcreateserial"),
            *("-extfile", extensions),
        )
        return certificate, key

    def _curve(self) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

    def _openssl(self, *arguments: object) -> None:
        command = ["openssl", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in memory."""
    return etcd.memory_directory(tmp_path_factory.mktemp("etcd-security"))


@pytest.fixture(scope="module")
def certificates(directory: Path) -> Certificates:
    """Return the cluster's CA."""
    return Certificates(directory, "ca")


@pytest.fixture(scope="module", params=["tls", "mutual"])
def secure(
    request: pytest.FixtureRequest, directory: Path, certificates: Certificates
) -> Iterator[etcd.Cluster]:
    """Yield an etcd that speaks TLS, and may ask for a certificate."""
    address = etcd.new_address()
    name = f"server-{request.param}"
    certificate, key = certificates.signed(name, subject=f"/CN={name}", address=address)
    extra = ["--cert-file", str(certificate), "--key-file", str(key)]
    ctl = ["--cacert", str(certificates.authority)]
    if request.param == "mutual":
        extra += ["--client-cert-auth"]
        extra += ["--trusted-ca-file", str(certificates.authority)]
        ctl += ["--cert", str(certificate), "--key", str(key)]
    member = etcd.Member(name, directory, address, scheme="https", extra=extra)
    with etcd.Cluster([member], ctl) as cluster:
        yield cluster


def test_a_store_works_over_tls(
    secure: etcd.Cluster, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other programs take for their authorities is no business of ours.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    certificate, key = certificates.signed("client", subject="/O=remora")
    store = EtcdStore(
        EtcdSettings(
            secure.endpoints,
            ca_file=certificates.authority,
            certificate_file=certificate,
            key_file=key,
        )
    )
    revision = store.transact([], [Put("a", b"1")]).revision
    watch = store.watch("", after_revision=revision)
    store.transact([], [Put("a", b"2")])
    assert [each.key for each in watch.next(30)] == ["a"]
    assert store.keep_alive(store.grant_lease(30))
    store.close()


def test_a_member_of_a_foreign_authority_is_sent_nothing(
    secure: etcd.Cluster, directory: Path
) -> None:
    foreign = Certificates(directory, f"foreign-{secure.members[0].name}")
    store = EtcdStore(EtcdSettings(secure.endpoints, ca_file=foreign.authority))
    with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED") as why:
        store.transact([], [Put("a", b"1")])
    # It is known that nothing was done.
    assert not isinstance(why.value, UnknownOutcomeError)
    store.close()


def test_without_a_certificate_nothing_was_done(
    secure: etcd.Cluster, certificates: Certificates
) -> None:
    store = EtcdStore(EtcdSettings(secure.endpoints, ca_file=certificates.authority))
    if "mutual" not in secure.members[0].name:
        assert store.transact([], [Put("a", b"1")]).succeeded
    else:
        with pytest.raises(StoreError, match="etcd did not answer") as why:
            store.transact([], [Put("a", b"1")])
        assert not isinstance(why.value, UnknownOutcomeError)
    store.close()


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("nonsense")
    for path in (wrong, tmp_path / "absent.pem"):
        with pytest.raises(StoreError, match=path.name):
            EtcdStore(EtcdSettings(("https://127.0.0.1:1",), ca_file=path))


@pytest.fixture(scope="module")
def guarded(directory: Path) -> Iterator[etcd.Cluster]:
    """Yield an etcd with users, whose tokens live for a second."""
    with etcd.single(directory, "--auth-token-ttl", "1") as cluster:
        for line in (
            "user add root:boss",
            "user grant-role root root",
            "user add remora:secret",
            "role add volumes",
            "role grant-permission volumes --prefix=true readwrite /remora/",
            "user grant-role remora volumes",
            "auth enable",
        ):
            cluster.ctl(*line.split())
        cluster.ctl_options = ["--user", "root:boss"]
        yield cluster


def guarded_store(cluster: etcd.Cluster, password: str = "secret") -> EtcdStore:
    cluster.heal()
    return EtcdStore(
        EtcdSettings(
            cluster.endpoints, user="remora", password=password, watch_idle_s=1.0
        )
    )


def test_tokens_expire_unnoticed(guarded: etcd.Cluster) -> None:
    store = guarded_store(guarded)
    lease = store.grant_lease(60)
    revision = store.transact([], [Put("a", b"1", lease)]).revision
    watch = store.watch("", after_revision=revision)
    for number in range(2):
        # No call renews the token meanwhile; the watch opens anew and signs in.
        clock.pause(2.5)
        store.transact([], [Put("a", str(number).encode(), lease)])
        assert [each.key for each in watch.next(30)] == ["a"]
        assert store.keep_alive(lease)
    store.close()


def test_a_restarted_member_knows_no_token(guarded: etcd.Cluster) -> None:
    store = guarded_store(guarded)
    store.transact([], [Put("a", b"1")])
    guarded.members[0].kill()
    guarded.heal()
    assert store.get("a") is not None
    assert store.transact([], [Put("a", b"2")]).succeeded
    store.close()


def test_a_change_of_users_asks_for_a_new_token(guarded: etcd.Cluster) -> None:
    store = guarded_store(guarded)
    store.transact([], [Put("a", b"1")])
    guarded.ctl("role", "add", "another")
    assert store.transact([], [Put("a", b"2")]).succeeded
    assert store.get("a") is not None
    store.close()


def test_a_wrong_password_is_told_at_once(guarded: etcd.Cluster) -> None:
    store = guarded_store(guarded, "wrong")
    began_s = clock.monotonic_s()
    with pytest.raises(RefusedError, match="authentication failed"):
        store.get("a")
    assert clock.monotonic_s() - began_s < 15
    store.close()


def test_who_has_no_user_or_no_right_is_refused(guarded: etcd.Cluster) -> None:
    guarded.heal()
    nobody = EtcdStore(EtcdSettings(guarded.endpoints))
    with pytest.raises(RefusedError, match="user name is empty"):
        nobody.get("a")
    elsewhere = EtcdStore(
        EtcdSettings(guarded.endpoints, prefix="/x/", user="remora", password="secret")
    )
    with pytest.raises(RefusedError, match="permission denied"):
        elsewhere.transact([], [Put("a", b"1")])
    for store in (nobody, elsewhere):
        store.close()


def test_a_password_is_never_shown() -> None:
    assert "secret" not in repr(EtcdSettings((), password="secret"))
