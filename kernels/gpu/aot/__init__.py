"""Compiles every kernel in the form its launcher launches, for real GPUs, without one: `python -m kernels.gpu.aot`."""
