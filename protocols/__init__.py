"""Protocols: which runs they are made of, in which order, and how they are started."""
