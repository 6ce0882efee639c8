"""herd's own kernels for processors: C++ sources, compiled on first use."""
