"""The backend `rsync`: volumes as directories on the node's own disk."""
