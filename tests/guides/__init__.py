"""The guides, done on real machines as they are printed."""
