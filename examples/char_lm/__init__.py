"""A character language model in small: its text, its shapes, its training and its figure."""
