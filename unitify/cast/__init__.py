"""Fifth stage: casts in the emitted graph, and contractions on FP8 operands."""
