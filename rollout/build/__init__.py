"""Factories of engines and fleets."""
