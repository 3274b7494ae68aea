"""Synthetic chest X-rays you may share."""

__version__ = "0.1.0"
