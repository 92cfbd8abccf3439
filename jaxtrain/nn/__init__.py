"""Networks as pure functions of (params, arrays): a transformer, its heads, steps from it."""
