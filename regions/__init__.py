"""Regions of images with their teacher logits: drawn once, stored once, replayed bit for bit.

In reading order: boxes.py draws and cuts regions, dump.py runs the teacher over them into a store/,
dataset.py, loader.py and features.py replay them in training; tools/ look at stores.
"""
