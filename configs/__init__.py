"""The config: our keys with their defaults, the command line, and the recipes (yaml)."""
