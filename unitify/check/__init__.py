"""``unitify check``: every tensor that a number format would not hold, at the user's own line."""
