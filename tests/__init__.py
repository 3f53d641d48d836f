"""Ours, and not the package `tests` that gmqtt 0.8.0 installs beside its own: a folder without this would lose to it."""
