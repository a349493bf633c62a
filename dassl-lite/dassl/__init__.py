"""dassl-lite: Dassl's public API as prompt-learning repositories use it, written anew."""

__version__ = "0.6.3+lite.1"  # the API level, then our own count
