"""Second stage, by running: true RMS of values and gradients over batches."""
