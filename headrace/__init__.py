"""The front door: the `headrace` command, the demo, the audit, and the configuration that composes the rooms."""
