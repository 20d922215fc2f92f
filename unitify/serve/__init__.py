"""Checkpoints for runtimes: a model's weights as codes and scales, written for other programs."""
