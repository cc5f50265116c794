"""The engine `journal`: what changed is copied once, sent, verified and applied."""
