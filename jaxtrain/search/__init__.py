"""Stage 2 of 7. Prompts in, Tree out.

`make_grow` returns the one function of the stage, whatever the method: a pure function of arrays
that grows a batch of trees. Search sees the PRM and never a gold answer: it is handed a Reader, no
task. A method is a rule, and a loop runs it: `tree_loop` those that walk down a tree to choose what
to expand, `frontier` those that go on from the best of what they drew.
"""

import chex

from jaxtrain.search.config import RULES, SearchConfig
from jaxtrain.search.frontier import FrontierRule, grow_frontier
from jaxtrain.search.rows import Job
from jaxtrain.search.tree_loop import grow_tree
from jaxtrain.structs import CheckFn, GrowFn, Reader


def make_grow(
    config: SearchConfig, max_steps: int, reader: Reader, check: CheckFn | None = None
) -> GrowFn:
    """Make `grow(policy_params, prm_params, prompts, keys [B 2] uint32, temperature [])` -> Tree.

    max_steps is D, the depth at which the reader ends a branch. check: of steps, for a config
    that wants one.
    """
    rule = RULES[config.method](config, max_steps)

    def grow(policy_params, prm_params, prompts, keys, temperature):
        num_problems = prompts.length.shape[0]
        chex.assert_shape([prompts.tokens, keys], [(num_problems, None), (num_problems, 2)])
        num_trees = min(config.num_trees or num_problems, num_problems)
        params = policy_params, prm_params
        asked = None if config.checks == "off" else check
        job = Job(config, prompts, keys, params, temperature, reader, max_steps, num_trees, asked)
        return grow_frontier(rule, job) if isinstance(rule, FrontierRule) else grow_tree(rule, job)

    return grow
