"""What the daemon and the command ask of the Docker Engine's own API, at its socket."""
