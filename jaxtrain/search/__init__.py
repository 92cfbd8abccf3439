"""Stage 2 of 7. Prompts in, Tree out.

`make_grow` returns the one function of the stage, whatever the method: a pure function of arrays
that grows a batch of trees. Search sees the PRM and never a gold answer: it is handed
`sample_steps` and `score_steps`, no task.
"""

from __future__ import annotations

from collections.abc import Callable

import chex

from jaxtrain.boundaries import TraceConfig
from jaxtrain.search.config import METHODS, SearchConfig


def make_grow(
    config: SearchConfig, trace: TraceConfig, sample_steps: Callable, score_steps: Callable
) -> Callable:
    """Make `grow(policy_params, prm_params, prompts, keys [B 2] uint32, temperature [])` -> Tree.

    sample_steps(params, prefix, keys, room, temperature, num_lanes, max_steps) -> (Steps, slots)
    and score_steps(params, prefix, steps) -> [B lanes K] float32 are the only sight of the
    networks.
    """
    grow_fn = METHODS[config.method]

    def grow(policy_params, prm_params, prompts, keys, temperature):
        chex.assert_shape(keys, (prompts.length.shape[0], 2))

        def sample(*args, **kwargs):
            return sample_steps(policy_params, *args, **kwargs)

        def score(*args):
            return score_steps(prm_params, *args)

        return grow_fn(config, trace, sample, score, prompts, keys, temperature)

    return grow


__all__ = ["SearchConfig", "make_grow"]
