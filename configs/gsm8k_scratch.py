"""Real word problems, bytes for tokens, a network that has never read English.

    python -m jaxtrain.main --config configs/gsm8k_scratch.py \
        --config.tasks.jsonl.path=train.jsonl --config.tasks.jsonl.test_path=test.jsonl

Hardware: 2 CPU cores, 3 GB; 10 minutes for 355 trees on the files of GSM8K. Expect next to nothing:
10 of those trees held a correct answer, and greedy accuracy went from 0 to 4 % of 93 problems, a
matter of guessing small numbers. What counts is that every prompt too long, answer unparsable and
tree without a correct leaf is told (docs/data.md).
"""

from jaxtrain.configs.base import get_config as base


def get_config():
    c = base()
    c.tasks.name = "jsonl"
    c.tasks.num_dev = 128
    c.tasks.num_test = 128
    c.tasks.num_demonstrations = 3000

    # A third of the questions is longer and left out; of the lines of reasoning, a quarter is
    # longer and cut.
    c.prompts.max_prompt_tokens = 256
    c.trace.max_step_tokens = 80
    c.trace.max_steps = 5
    # Reading all of that again at every expansion is most of the work, and its cost grows with the
    # number of heads.
    c.model.num_heads = 2
    c.model.num_kv_heads = 1

    c.prompts.batch_size = 32
    c.prompts.num_problems = 180
    c.prompts.num_first_problems = 180
    c.search.num_simulations = 4
    c.search.num_candidates = 4
    c.search.temperature = 0.7

    c.updates.policy.batch_size = 8
    c.updates.policy.warm_start.num_updates = 1000
    c.updates.policy.warm_start.learning_rate = 3e-3
    c.updates.policy.fit.learning_rate = 3e-3
    # Few trees are solved: more updates would only learn these few by heart.
    c.updates.policy.fit.num_updates = 10
    c.updates.prm.batch_size = 8
    c.updates.prm.warm_start.num_updates = 20
    c.updates.prm.fit.num_updates = 20

    c.evaluation.num_problems = 128
    c.evaluation.search.num_simulations = 2
    c.evaluation.search.temperature = 0.7
    c.evaluation.samples.num_samples = 8
    c.loop.num_iterations = 2
    return c
