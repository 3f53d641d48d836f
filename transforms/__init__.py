"""Transforms are pure functions over messages: one file per format or step, called as in routes.yaml."""
