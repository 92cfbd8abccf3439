"""Qwen2.5-1.5B teaches itself word problems in the form of GSM8K on one H100 of 80 GB.

    python -m jaxtrain.main --config configs/h100.py --plan
    python -m jaxtrain.main --config configs/h100.py \\
        --config.tasks.jsonl.path=train.jsonl --config.tasks.jsonl.test_path=test.jsonl \\
        --config.hub.may_download=True

The plan is from shapes, not compiled. Not run on such a GPU yet. `configs/h100.py:0.5b` is the same
with the smaller Qwen2.5.
"""

from jaxtrain.configs.tpu_v4 import get_config as tpu_v4


def get_config(size="1.5b"):
    c = tpu_v4(size)
    c.sharding.topology = "h100:1"
    c.sharding.data = 1
    c.sharding.fsdp = 1
    c.updates.policy.batch_size = 8
    c.updates.prm.batch_size = 16
    c.checkpoints.num_kept = 2
    return c
