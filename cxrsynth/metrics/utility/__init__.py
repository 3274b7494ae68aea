"""Utility: does training on synthetic images help? Classifiers trained in several ways, tested on real patients."""
