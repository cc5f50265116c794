"""
Fencing: a volume's writers run only while this node holds the volume.

`guard` is a process of its own that does it, `client` is how the daemon tells it until
when. All but `client` run in the guard: standard library only, and little of it.
"""
