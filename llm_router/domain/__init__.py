"""Frozen values without I/O that the rest of the library works with."""
