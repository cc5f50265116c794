"""Which nodes there are: their records, leases and addresses."""
