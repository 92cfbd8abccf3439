"""Countdown from scratch on a laptop.

    python -m jaxtrain.main --config configs/quickstart.py
"""

from configs.base import get_config as base


def get_config():
    c = base()
    c.prompts.max_prompt_tokens = 12
    c.prompts.batch_size = 128
    c.search.max_steps = 2
    c.search.max_step_tokens = 18
    c.search.num_candidates = 8
    c.search.num_simulations = 9
    c.evaluation.num_candidates = 4
    c.evaluation.num_simulations = 5
    c.evaluation.num_samples = 32
    return c
