"""What casts leave of a signal, measured by running; and which contractions stay in BF16."""
