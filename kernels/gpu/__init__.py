"""Triton kernels and launchers of the ops, one file per op, imported on first use: the package needs no Triton itself.

Launches forbid the compiler to fuse products and sums (`enable_fp_fusion=False`): two kernels with the same formula, or
one compiled twice, then round alike. Tiles depend on widths only, never on the number of rows, so that a row has the same
bits in any batch.
"""
