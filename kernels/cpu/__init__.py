"""Ops in C for CPUs, one launcher per op. `kernels.<op>` calls them; nothing else does."""
