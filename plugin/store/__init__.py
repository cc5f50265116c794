"""Where the cluster's records live: the interface and its implementations."""
