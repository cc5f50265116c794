"""Volumes that show the last commit of another one, read-only; see ADR 29."""
