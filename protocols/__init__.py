"""Starting runs: what a protocol consists of, in which order."""
