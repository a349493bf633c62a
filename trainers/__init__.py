"""Trainers, registered with Dassl under the family's names."""

from trainers import coop, fdbpl, kdpl, zsclip  # noqa: F401  (importing registers them)
