"""
The Container Storage Interface: a process of its own beside the daemon (ADR 31).

It speaks gRPC with a scheduler, and to the daemon over the control socket as `remora`
does. It keeps nothing: what is published where, the daemon knows. It may import the
leaves of `plugin` and `backends.errors`, and nothing of the daemon's rooms.
"""
