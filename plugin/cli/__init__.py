"""The `remora` command; it talks to the daemon through the control socket."""
