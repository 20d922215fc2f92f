"""Checkpoints for runtimes: a model's weights as codes and scales, for other programs."""
