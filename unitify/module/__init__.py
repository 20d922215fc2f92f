"""``UnitScaledModule``: the result of the pipeline, with one graph or several."""
