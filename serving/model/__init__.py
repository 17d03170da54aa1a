"""One version's model as a server computes it, and what it keeps of users between requests."""
