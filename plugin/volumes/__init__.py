"""The use cases: how volumes come to be, are mounted, shown and removed."""
