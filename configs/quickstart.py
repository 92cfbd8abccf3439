"""Countdown from scratch on a laptop.

python -m jaxtrain.main --config configs/quickstart.py
"""

from configs.base import get_config as base


def get_config():
    c = base()
    c.prompts.max_prompt_tokens = 12
    c.prompts.batch_size = 128
    c.prompts.num_problems = 1024
    c.prompts.num_first_problems = 512
    c.search.max_steps = 2
    c.search.max_step_tokens = 16
    c.search.num_candidates = 8
    c.search.num_simulations = 9
    c.updates.policy.num_first_updates = 1200
    c.updates.policy.num_updates = 500
    c.updates.policy.learning_rate = 4e-3
    c.updates.prm.num_first_updates = 600
    c.updates.prm.num_updates = 500
    c.updates.prm.learning_rate = 2e-3
    c.evaluation.num_candidates = 4
    c.evaluation.num_simulations = 5
    c.evaluation.num_samples = 32
    return c
