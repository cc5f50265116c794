"""How commits come from node to node: sending, receiving, and pulling them."""
