"""Which version answers: followed from the weights topic, checked, swapped in."""
