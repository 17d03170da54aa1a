"""What a killed trainer resumes from: checkpoints, and the journal of the steps after them."""
