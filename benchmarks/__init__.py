"""What a transformed model costs, in pairs that take turns: ``make bench``."""
