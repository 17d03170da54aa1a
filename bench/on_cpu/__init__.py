"""The parts of `bench.kernels`."""
