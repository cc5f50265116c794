"""Which node owns a volume: the rules, and what drives them."""
