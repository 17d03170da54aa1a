"""What servers get: versions of the weights, rounded, published by one leader."""
