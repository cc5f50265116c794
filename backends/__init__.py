"""Storage: the backend contract, its registry and the backends themselves."""
