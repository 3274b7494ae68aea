"""Shards: what is written, where, and how it is told to be complete."""
