"""Linears in which a row does not depend on the others, plain and quantized."""
