"""Several nodes as one: who they are, and which of them owns a volume."""
