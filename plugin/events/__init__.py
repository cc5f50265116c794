"""What happened to volumes, for people."""
