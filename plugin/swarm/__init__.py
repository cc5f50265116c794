"""Placing tasks: labels of a Docker Swarm's nodes that tell where volumes are."""
