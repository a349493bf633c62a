"""CLIP, its prompts and its teacher: tensors and plain values in, tensors out; no config."""
