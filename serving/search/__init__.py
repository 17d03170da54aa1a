"""Looking for the best of many items by lists, and how many of them that finds."""
