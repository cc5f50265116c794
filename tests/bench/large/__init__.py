"""Large files with small changes, and trees of many small ones; see `__main__.py`."""
