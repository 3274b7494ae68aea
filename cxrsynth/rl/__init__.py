"""Policy gradient: advantage, objective, update, checkpoints."""
