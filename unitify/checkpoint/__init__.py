"""Reads checkpoints, and writes and loads converted folders. No code in them runs."""
