"""Frozen values without I/O: what the rest of the library talks about."""
