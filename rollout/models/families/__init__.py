"""Families of models: one file each, and a table."""
