"""Users' histories, whose they are, and the servers that hold the others."""
