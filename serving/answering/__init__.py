"""Requests computed from one version, several at a time."""
