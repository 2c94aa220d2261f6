"""Kernels over the vocabulary: sums, sampling, log-probabilities, keyed uniforms."""
