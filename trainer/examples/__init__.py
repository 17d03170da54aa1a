"""What steps teach: examples, folded into users' histories and laid out as jagged batches."""
