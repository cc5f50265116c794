"""Journals between nodes: sending commits, receiving them, taking over."""
