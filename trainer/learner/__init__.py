"""One training step: predict, count, learn."""
