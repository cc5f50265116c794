"""Preparing a new machine over SSH, so that it becomes a node of the cluster."""
