"""Docker's volume plugin protocol."""
