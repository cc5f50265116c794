"""The cluster's store: a thin client of our own over etcd's JSON gateway (ADR 10)."""
