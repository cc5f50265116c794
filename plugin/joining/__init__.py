"""From one node to a cluster and back: joining, dumping, loading records."""
