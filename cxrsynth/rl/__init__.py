"""Learning from rewards: rollouts, advantage, objective, update, checkpoints. No files but checkpoints, no console."""
