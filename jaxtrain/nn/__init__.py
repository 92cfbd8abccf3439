"""Networks as pure functions of (params, arrays): one transformer, its value head, and how steps
are drawn from it.
"""
