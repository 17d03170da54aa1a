"""Several processes that train together: shards of a step, summed to the same bits on each."""
