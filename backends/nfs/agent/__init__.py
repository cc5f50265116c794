"""
What runs in processes of its own, because a dead NFS server may keep it for ever.

Nothing here may import more than the standard library, this package, the clock and
how files are opened.
"""
