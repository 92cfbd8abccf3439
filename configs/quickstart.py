"""Countdown from scratch on a laptop: reach a target from three numbers with + - * /, each used
once.

    python -m jaxtrain.main --config configs/quickstart.py

Hardware: 2 CPU cores, 3.7 GB, no network; 7 to 12 minutes, the first report after 3 or 4. Expect
greedy accuracy on 512 test problems to go from 8-15 % after the warm start to 30-45 % after three
iterations (README, Results).

The demonstrations (D_S0 in the paper) are the play of a weak player
(tasks.countdown.demonstration_skill): whole and legal games that mostly miss the target. Tuned on
the dev split (--config.evaluation.split=dev); the test split is scored, and nothing is chosen by
it.
"""

from jaxtrain.configs.base import get_config as base


def get_config():
    """Return the defaults with what Countdown needs."""
    config = base()
    # 8,187 solvable problems; held-out accuracy is limited by their number
    config.tasks.countdown.max_number = 15
    config.tasks.countdown.demonstration_skill = 0.5

    # angles that turn within 44 tokens; the usual ones suit far longer texts. With those and 4
    # heads one PRM of sixteen did not learn to compare last digits of results with the target
    config.model.num_heads = config.model.num_kv_heads = 8
    config.model.rope_theta = 100.0

    config.prompts.max_prompt_tokens = 12
    config.prompts.num_problems = 3072
    config.prompts.batch_size = 256
    config.prompts.num_first_problems = 512
    # the operations of so small a network keep one core busy
    config.loop.overlap_searches = True

    config.trace.max_steps = 2
    config.trace.max_step_tokens = 16
    config.search.num_candidates = 8
    # a tree of two steps has no more to expand than the root and its candidates
    config.search.num_simulations = 9
    # the policy narrows as it learns: below this, half the candidates are duplicates
    config.search.temperature = 1.4
    # what is left of a prefix's law then is false sums
    config.search.top_p = 0.95
    # one lane a tree: no candidate in vain, and none waits for its siblings
    config.search.num_lanes = config.evaluation.search.num_lanes = 1

    config.datasets.traces_rounds = 4
    # a round gives some 40,000 paths, and a fit of the PRM shows 96,000
    config.datasets.paths_rounds = 1

    policy, prm = config.updates.policy, config.updates.prm
    policy.warm_start.num_updates = 5000  # to its plateau: 8,000 reach no more on dev
    policy.fit.num_updates = 1250
    policy.batch_size = 32  # small batches learn more a second on a CPU
    policy.warm_start.learning_rate = policy.fit.learning_rate = 4e-3
    prm.warm_start.num_updates, prm.fit.num_updates = 1000, 3000
    prm.batch_size = 32
    # a higher rate forgets what the PRM before knew
    prm.warm_start.learning_rate, prm.fit.learning_rate = 2e-3, 1e-3

    # few simulations, of likely steps alone: unlikely ones fool the PRM
    samples, searching = config.evaluation.samples, config.evaluation.search
    samples.num_samples = 32
    searching.num_simulations, searching.num_candidates, searching.top_p = 6, 8, 0.8
    samples.temperature = searching.temperature = 1.0
    samples.prior.weight = searching.prior.weight = 0.2
    return config
