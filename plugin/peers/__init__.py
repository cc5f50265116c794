"""
The channel between nodes: an sshd of our own, what it may run, and its clients.

`sshd.py` supervises the server, `enclosure.py` gives it its surroundings. `receive.py`
is all that it runs; it becomes `relay.py`, or rsync, which `jail.py` confines to one
directory. `server.py` and `control.py` answer it in the daemon. `channel.py` asks
another node, `sharing.py` has the ssh that sends to it. docs/adr/0013-peer-channel.md
says why.
"""
