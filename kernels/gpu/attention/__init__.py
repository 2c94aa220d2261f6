"""Attention: the forward of packed and paged keys, its backward, and the work of both as integers."""
