"""The network's pass over a batch: losses, gradients, optimiser; on the CPU without autograd, on a GPU as graphs."""
