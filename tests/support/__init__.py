"""Machines, engines and daemons for the tests that need real ones."""
