"""What other plugins' options are called here is said when they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import InvalidRequestError
from backends.foreign_options import hint
from backends.nfs.backend import NfsBackend
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.model import check_name
from plugin.volumes.options import OptionResolver
from tests.unit.test_nfs_options import NFS

RSYNC = RsyncBackend(Path("/nowhere"), pool_id="p")
RESOLVER = OptionResolver(Registry([RSYNC, NFS]), {})
NAS = {"server": "nas", "share": "/export"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        # REX-Ray
        ({"IOPS": "100"}, "there is none: a volume is as fast as the disk"),
        ({"volumeType": "io1"}, "there is none: a volume is as fast as the disk"),
        ({"type": "gp2"}, "kinds of disks, as REX-Ray and Convoy have them"),
        ({"availabilityZone": "us-east-1a"}, "'members' names the nodes"),
        ({"encrypted": "true"}, "put the pool on an encrypted disk"),
        ({"encryptionKey": "k"}, "put the pool on an encrypted disk"),
        ({"fsType": "xfs"}, "a volume is a directory of the pool"),
        ({"newFsType": "xfs"}, "a volume is a directory of the pool"),
        ({"overwriteFs": "true"}, "a volume is a directory of the pool"),
        ({"volumeName": "rows"}, "'from' begins with the bytes of VOLUME"),
        ({"volumeID": "vol-1"}, "'from' begins with the bytes of VOLUME"),
        ({"snapshotName": "s"}, "VOLUME@SNAPSHOT"),
        ({"snapshotID": "snap-1"}, "VOLUME@SNAPSHOT"),
        # Convoy
        ({"driver": "vfs"}, "'driver: remora' stands beside driver_opts"),
        ({"vfs.path": "/opt/nfs"}, "'pool' in remora.toml, or 'server' and 'share'"),
        ({"dm.datadev": "/dev/sdb1"}, "'pool' in remora.toml"),
        ({"backup": "s3://b@r/"}, "which remora import takes"),
        ({"endpoint": "http://s3"}, "which remora import takes"),
        ({"id": "vol-1"}, "'from' begins with the bytes of VOLUME"),
        ({"vm": "true"}, "there is none: a volume is a directory"),
        # netshare
        ({"create": "true"}, "existing=adopt takes one that is there"),
        ({"create": "true", **NAS}, "with existing=adopt"),
        ({"share": "nas/export/rows"}, "or SERVER:/PATH: nas:/export/rows"),
        ({"username": "u"}, "CIFS is mounted by driver 'local'"),
        ({"security": "ntlm"}, "CIFS is mounted by driver 'local'"),
        ({"fileMode": "0777"}, "it is called 'mode' here"),
        ({"dirMode": "0777"}, "CIFS is mounted by driver 'local'"),
        # rancher-nfs, Portworx, cloudstor, Flocker
        ({"host": "nas"}, "it is called 'server' here with backend 'nfs': -o server="),
        ({"export": "/x"}, "it is called 'share' here"),
        ({"exportBase": "/x", "server": "nas"}, "(hint: it is called 'share' here)"),
        ({"mntOptions": "soft"}, "it is called 'mountOptions' here"),
        ({"onRemove": "purge", **NAS}, "(hint: it is called 'onDelete' here)"),
        ({"onDelete": "purge", **NAS}, "must be one of retain, archive, delete"),
        ({"repl": "3"}, "(hint: it is called 'replicas' here)"),
        ({"repl": "3", **NAS}, "it is called 'replicas' here with backend 'rsync'"),
        ({"backing": "relocatable"}, "'replicas' says how many nodes keep copies"),
        ({"maximum_size": "1"}, "it is called 'size' here"),
        # Longhorn, local-persist, sshfs, Kubernetes' NFS provisioners
        ({"numberOfReplicas": "3"}, "(hint: it is called 'replicas' here)"),
        ({"mountpoint": "/data/rows"}, "into which remora import copies a directory"),
        ({"sshcmd": "u@h:/x"}, "what SSH reaches"),
        ({"cifsopts": "vers=3.0"}, "CIFS is mounted by driver 'local'"),
        ({"archiveOnDelete": "true", **NAS}, "it is called 'onDelete' here"),
        ({"pathPattern": "${.PVC.name}", **NAS}, "it is called 'subDir' here"),
        ({"addr": "nas", "device": ":/x"}, "(hint: it is called 'server' here)"),
        # The other backend's
        ({"existing": "adopt"}, "it is there with backend 'nfs': -o server=HOST"),
        ({"min_acks": "1", **NAS}, "it is there with backend 'rsync', in a pool"),
        # Nobody's
        ({"sise": "1G"}, "did you mean 'size'? valid options: backend, "),
        ({"MemberS_": "a"}, "did you mean 'members'? "),
        ({"colour": "red"}, "(hint: valid options: backend, "),
        ({"sharre": "/x", "server": "nas"}, "did you mean 'share'? "),
    ],
)
def test_each_is_refused_in_one_line_with_what_to_write(
    given: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RESOLVER.resolve(given)
    told = str(caught.value)
    assert said in told
    assert "\n" not in told


def test_each_option_of_one_backend_is_told_to_who_has_the_other() -> None:
    """A new one has to be added to the table of the hints."""
    of = {"nfs": options_of(NFS), "rsync": options_of(RSYNC)}
    for here, there in (("nfs", "rsync"), ("rsync", "nfs")):
        # `create` is none: a backend has it to refuse it.
        for key in of[there] - of[here] - {"create"}:
            told = hint(key, of[here])
            assert told.startswith(f"it is there with backend '{there}'"), key


def options_of(backend: NfsBackend | RsyncBackend) -> set[str]:
    """Return the options that *backend* says it has."""
    with pytest.raises(InvalidRequestError) as caught:
        backend.parse_options({"_": ""})
    return set(caught.value.hint.removeprefix("valid options: ").split(", "))


def test_an_export_as_a_name_is_told_how_to_give_it() -> None:
    """netshare takes `-v nas/export:/d` without a volume."""
    with pytest.raises(InvalidRequestError, match="the option share=SERVER:/PATH"):
        check_name("nas/export")
    with pytest.raises(InvalidRequestError, match=r"a letter or digit\)$"):
        check_name("a b")


def test_what_they_share_with_us_is_taken() -> None:
    taken = RESOLVER.resolve({"share": "nas:/export/rows", "nfsopts": "hard"}).options
    assert (taken["server"], taken["share"]) == ("nas", "/export/rows")
    assert isinstance(RESOLVER.resolve(NAS).backend, NfsBackend)
    assert RESOLVER.resolve({"size": "16GiB"}).options["size"] == str(16 * 2**30)
    assert RESOLVER.resolve({"size": "1048576"}).options["size"] == "1048576"
