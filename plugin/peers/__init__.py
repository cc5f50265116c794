"""
The channel between nodes: an sshd of our own, what it may run, and its clients.

`sshd.py` supervises the server, `enclosure.py` is where it lives; `receive.py` is all
that it runs, `jail.py` where that keeps the bytes of another node; `server.py` answers
it in the daemon. `channel.py` asks another node, `sharing.py` sends it bytes.
docs/adr/0013-peer-channel.md says why.
"""
