"""Qwen2.5-1.5B teaches itself word problems in the form of GSM8K on a TPU v4-8: four chips of 32
GiB.

    python -m jaxtrain.main --config configs/tpu_v4.py --plan
    python -m jaxtrain.main --config configs/tpu_v4.py \\
        --config.tasks.jsonl.path=train.jsonl --config.tasks.jsonl.test_path=test.jsonl \\
        --config.hub.may_download=True

The plan compiles the four heavy programs for the topology, with no TPU at hand (pip install -e
'.[plan]'). It has not been run on one: batch sizes are those that the plan shows to fit.
`configs/tpu_v4.py:0.5b` is the same with the smaller Qwen2.5, `configs/tpu_v4.py:tiny` with a tiny
network.
"""

from jaxtrain.configs.base import get_config as base


def get_config(size="1.5b"):
    c = base()
    c.sharding.topology = "v4:2x2x1"
    c.sharding.data = 1
    c.sharding.fsdp = 4
    c.hub.pretrained = "Qwen/Qwen2.5-1.5B-Instruct"
    # The shape, so that a plan needs no download; a run takes it from the model itself.
    c.model.num_layers = 28
    c.model.width = 1536
    c.model.num_heads = 12
    c.model.num_kv_heads = 2
    c.model.mlp_width = 8960
    c.model.vocab_size = 151936
    c.model.has_qkv_bias = True
    c.model.rope_theta = 1_000_000.0
    c.model.norm_eps = 1e-6
    c.model.dtype = "bfloat16"
    c.model.is_scanned = True
    c.model.is_rematerialised = True

    c.tasks.name = "jsonl"
    c.tasks.num_dev = 256
    c.tasks.num_test = 512
    c.tasks.num_demonstrations = 512
    c.prompts.style = "chat"
    c.prompts.system = (
        "Solve the problem step by step, one step a line. End with a line '#### ' and the number."
    )
    c.prompts.max_prompt_tokens = 256
    c.prompts.num_problems = 2048
    c.prompts.batch_size = 64
    c.trace.answer = "hash"
    c.trace.max_steps = 8
    c.trace.max_step_tokens = 64
    c.search.num_simulations = 16
    c.search.num_candidates = 4

    for learner in (c.updates.policy, c.updates.prm):
        learner.batch_size = 16
        learner.weight_decay = 0.0
        learner.warm_start.learning_rate = learner.fit.learning_rate = 1e-5
        learner.warm_start.num_updates = 100
        learner.fit.num_updates = 200
    c.checkpoints.num_updates = 50
    c.evaluation.samples.num_samples = 16
    if size == "0.5b":
        c.hub.pretrained = "Qwen/Qwen2.5-0.5B-Instruct"
        c.model.num_layers, c.model.width, c.model.num_heads, c.model.mlp_width = 24, 896, 14, 4864
    if size == "tiny":
        c.model.num_layers, c.model.width, c.model.mlp_width, c.model.vocab_size = 2, 96, 192, 512
        c.prompts.batch_size, c.search.num_simulations, c.trace.max_steps = 8, 4, 2
    return c
