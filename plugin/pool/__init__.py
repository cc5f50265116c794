"""Making a pool: a filesystem with clones for people whose disk is ext4."""
