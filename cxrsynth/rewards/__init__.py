"""Rewards: posture, diagnosis and consistency of a chest X-ray, and the networks behind them."""
