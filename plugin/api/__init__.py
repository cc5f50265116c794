"""What the daemon answers: Docker's protocol, and the administrator's API."""
