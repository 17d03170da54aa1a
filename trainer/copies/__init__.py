"""A learner's rows, copied in slices between its steps."""
