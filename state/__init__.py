"""What an action, an interaction and an example are; their bytes; the topics; and the store that keeps sequences."""
