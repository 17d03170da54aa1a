"""Where steps come from: the sequences topic, and the steps that were recorded."""
