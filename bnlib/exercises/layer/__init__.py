"""The exercise `layer`: the formulas of its two modes, the parts of a layer, and how one is examined."""
