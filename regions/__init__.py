"""Regions of images with their teacher logits: drawn once, stored once, replayed bit for bit."""
