"""The daemon as a process: composition root, servers, sockets, start and end."""
