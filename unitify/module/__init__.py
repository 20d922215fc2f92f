"""``UnitScaledModule``: what the pipeline returns, of one graph or of several."""
