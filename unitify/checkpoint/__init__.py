"""Checkpoints read, converted folders written and loaded; nothing in them is run."""
