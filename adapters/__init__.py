"""Adapters touch the world: one file per protocol, called as in routes.yaml."""
