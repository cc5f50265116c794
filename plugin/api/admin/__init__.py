"""The administrator's API on the control socket."""
