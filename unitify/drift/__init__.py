"""During training: a monitor of scales, and a rebase that chooses them again."""
