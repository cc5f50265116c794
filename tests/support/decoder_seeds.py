"""One good example of each thing that `decoders.py` decodes."""

from __future__ import annotations

from typing import Final

from backends.system.clock import boot_id

ID: Final = "4f6f2c1e-0000-4000-8000-000000000001"
_ID: Final = ID.encode()
_BOOT: Final = boot_id().encode()
_DATABASE: Final = b"SQLite format 3\0" + bytes(84)

_MARKER: Final = (
    b'{"id":"%b","name":"db","subdir":"team/db","state":"ready","adopt":false,'
    b'"requested":{"server":"nas","share":"/x","backend":"nfs"},"options":{'
    b'"server":"nas","share":"/x","nfsvers":"4.2","mountMode":"subdir","subDir":'
    b'"team/db","mountOptions":"hard,nconnect=4","uid":"1000","mode":"0750"},'
    b'"node":"node1.uuid","created_at":"2026-01-02T03:04:05Z","identity":'
    b'"12-0123456789abcdef","made_parents":["team"],"swap":{"copy":'
    b'".dvol/copies/node1/0123456789abcdef","node":"node1","keep_as":"before"}}'
) % _ID
_VOLUME: Final = (
    b'{"id":"%b","name":"db","backend":"rsync","requested":{"interval":"2s"},'
    b'"options":{"interval":"2s","mode":"0755"},"created_at":'
    b'"2026-01-02T03:04:05Z","phase":"ready","node":"n1","filled":false}'
) % _ID
_HELD: Final = (
    b'{"id":"%b","device":"0:5","root":"/v","target":"/m","deadline_s":5.0,'
    b'"freeze_max_s":60.0,"policy":"freeze","source":"","epoch":3}'
) % _ID
# It has the fields of all requests, and of some answers.
REQUEST: Final = (
    b'{"volume":"%b","name":"db","epoch":3,"seq":7,"node":"n2","commit":[3,7],'
    b'"have":[0,0],"paths":["YQ=="],"limit":5,"size_bytes":5,"carried_bytes":5,'
    b'"volumes":["%b"],"to":"beta","wish":"add","change":"add","member":"n2",'
    b'"boot_id":"b","id":1,"missing":["YQ=="]}'
) % (_ID, _ID)
SEEDS: Final = {
    "share: marker": _MARKER,
    "share: discovered": _MARKER,
    "share: claim": b'{"id":"%b","name":"db"}' % _ID,
    "share: change": b'{"node":"n1"}',
    "share: snapshot": b'{"created_at":"2026","files":3,"size_bytes":5}',
    "record: volume": _VOLUME,
    "record: volume head": _VOLUME,
    "record: head": (
        b'{"epoch":3,"owner":"n1","boot_id":"b","phase":"owned","committed":[3,7],'
        b'"quality":"fuzzy","holders":["n1"],"members":["n1","n2"]}'
    ),
    "record: lock": b'{"node":"n1","epoch":3}',
    "record: epoch": (
        b'{"base":[1,2],"owner":"n1","began_at":"2026","lost":[1,3],'
        b'"earlier":[[1,[0,0],"n1","2026",null,""]]}'
    ),
    "record: tomb": (
        b'{"name":"db","backend":"rsync","removed_at":"2026","pending":["n1"]}'
    ),
    "record: node": (
        b'{"id":"n1","name":"alpha","addresses":["192.0.2.1"],"peer_port":7424,'
        b'"version":"1","protocol":1,"protocol_oldest":1,"machine_id":"m",'
        b'"boot_id":"b","host_key":"ssh-ed25519 AAAA","public_key":'
        b'"ssh-ed25519 AAAA","joined_at":"2026"}'
    ),
    "record: node's lease": b'{"boot_id":"b","started_at":"2026","session":"s"}',
    "record: quarantine record": (
        b'{"set_apart_at":"2026","files":3,"size_bytes":5,"whole":true}'
    ),
    "record: mark of a load": (
        b'{"digest":"d","taken_at":"2026","replace":true,"started_at":"2026"}'
    ),
    "record: snapshots": b'[{"name":"s","created_at":"2026","files":3,"size_bytes":5}]',
    "record: options": b"replicas=2\nmembers=a,b\ninterval=2s\nmin_acks=1",
    "peer: events": (
        b'{"events":[{"at":"2026-01-02T03:04:05.123Z","kind":"committed","facts":'
        b'{"a":"b"}}]}'
    ),
    "peer: error": b'{"error":{"code":"x","cause":"y","exit_code":3}}',
    "peer: transfers": (
        b'{"transfers":[{"volume":"%b","done_bytes":1,"total_bytes":2,"files":1,'
        b'"rate_bytes_s":1.5}]}'
    )
    % _ID,
    "file: what does not fit": b'[["ZmlsZQ==","attributes"]]',
    "file: commit's marker": b'{"commit":[1,2],"work":".remora.0","deleted":true}',
    "file: copy state": b'{"promised":3,"commit":[3,7],"live_epoch":3,"next_seq":8}',
    "file: pool": b'{"id":"%b"}' % _ID,
    "file: volume": _VOLUME,
    "file: manifest": _DATABASE,
    "file: database": _DATABASE,
    "file: mirror": _DATABASE,
    "file: publication": (
        b'{"target":"/t","path":"/p","root":"/","volume_id":"%b","mode":1,'
        b'"read_only":false,"user":{"pod":"default/x"}}'
    )
    % _ID,
    "file: guard": (
        b'{"boot_id":"%b","held":[%b],"fences":[{"volume":%b,"since_s":4.0,'
        b'"kill":false,"killed":false,"targets":[]}]}'
    )
    % (_BOOT, _HELD, _HELD),
    "file: dump": (
        b'{"format":1,"cluster":"","revision":4,"records":2,"taken_at":"2026",'
        b'"version":"1"}\n{"key":"volumes/db","json":{"a":1}}\n'
        b'{"key":"x","base64":"AA=="}\n'
    ),
    "text: mounts": (
        b"36 35 98:0 /mnt1 /mnt\\0402 rw master:1 - ext3 /dev/sda rw,errors=x\n"
        b"37 35 0:42 / /srv rw shared:7 - nfs4 nas:/x rw,vers=4.2\n"
    ),
    "text: progress": b"   65536  12%  1.20MB/s  0:00:03 (xfr#4, to-chk=1/9)",
    "text: rsync's item": b"@>f.st...... a\\#012b",
    "people: configuration": (
        b'[daemon]\nstate_dir = "/srv/x"\nmount_deadline_s = 20\n[cluster]\n'
        b'etcd = ["https://192.0.2.1:2379"]\nlease_ttl_s = 15\nreplace_after = "30m"\n'
        b'[profiles.fast]\ninterval = "2s"\n'
    ),
    "people: nfs options": (
        b"server=nas\nshare=/x\no=soft,vers=4.2;ro\nsec=krb5\nsubDir=a/b\nmode=750"
    ),
    "people: rsync options": b"replicas=2\nmembers=a,b\ninterval=2s\nsize=10G\nuid=5",
    "engine: create": b'{"Name":"v","Opts":{"size":"1G"}}',
    "engine: mount": b'{"Name":"v","ID":"x"}',
    "engine: name": b'{"Name":"v"}',
}
