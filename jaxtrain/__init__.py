"""Self-train a language model by process-reward-guided tree search, in pure JAX."""

__version__ = "0.1.0"
