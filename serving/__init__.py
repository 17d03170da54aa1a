"""Serving: follow the weights topic, keep newest histories, answer over HTTP from one whole version at a time."""
