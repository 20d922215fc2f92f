"""Fifth stage: casts in the emitted graph, and products that run on FP8 operands."""
