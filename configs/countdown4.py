"""Countdown with four numbers up to 99 and targets from 10 to 100, from scratch: two moves matter
before the last one, and the game is the one of published results (Qin et al., COLM 2025).

    python -m jaxtrain.main --config configs/countdown4.py

Hardware: 2 CPU cores. It has not run whole yet: neither time nor score is known, and nothing is
tuned. These are the quickstart's values, with room for a longer game. Random legal play
solves 1.7 % of the problems.
"""

from jaxtrain.configs.quickstart import get_config as quickstart


def get_config():
    """Return the quickstart with four numbers."""
    config = quickstart()
    config.tasks.countdown.num_numbers = 4
    config.tasks.countdown.max_number = 99
    config.tasks.countdown.min_target = 10
    config.tasks.countdown.max_target = 100
    config.tasks.num_train = 20_000

    config.prompts.max_prompt_tokens = 16  # "99 99 99 99=100" and its newline
    config.trace.max_steps = 3
    config.trace.max_step_tokens = 24
    # a root with its candidates, and some second moves behind the best of them
    config.search.num_simulations = 24
    config.evaluation.search.num_simulations = 16
    for search in (config.search, config.evaluation.search):
        search.num_trees = 128
        search.chunk_tokens = config.trace.max_step_tokens
    return config
