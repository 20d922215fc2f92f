"""Second stage, without data: moments of every value and gradient by the rules."""
