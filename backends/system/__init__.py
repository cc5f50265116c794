"""The operating system's edge: commands, mounts, clocks, files and quotas."""
