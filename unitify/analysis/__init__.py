"""Second stage, without data: moments of every value and gradient, predicted by the rules."""
