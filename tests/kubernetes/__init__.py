"""A real Kubernetes of two nodes, whose pods use the daemon's volumes through CSI."""
