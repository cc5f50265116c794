"""
Fencing: a volume's writers run only while this node holds the volume.

`guard`, a process of its own, stops them; with `client` the daemon tells it until when
they may run. All but `client` run in the guard: standard library only, little of it.
"""
