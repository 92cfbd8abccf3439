"""Peak memory of loading a pretrained model, against its size: made-up weights in the shape of
Qwen2.5-1.5B, bfloat16.

python -m benchmarks.load_memory        # writes 3 GB to a temporary folder, loads them in a process
of its own
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxtrain.files import write_json
from jaxtrain.flags import parse
from jaxtrain.hub import Pretrained, families, folder
from jaxtrain.hub.export import write_tensors
from jaxtrain.hub.pretrained import load_params
from jaxtrain.nn.transformer import ModelConfig, Transformer, abstract_params

LOAD = "from benchmarks.load_memory import load; load({!r})"


def half_params(config: ModelConfig):
    """Shapes of the parameters, in bfloat16."""
    shapes = abstract_params(Transformer(config, config.num_ids))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes)


def made_up(config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Yield random tensors under Hugging Face's names."""
    rng = np.random.default_rng(0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(half_params(config)):
        for name, _, shape in families.layers_of(families.path_of(path), leaf.shape):
            values = rng.standard_normal(families.their_shape(name, shape), np.float32)
            yield families.their_name(name), values.astype(ml_dtypes.bfloat16)


def write_made_up(path: Path, config: ModelConfig) -> None:
    """Write a folder of random weights, without a tokenizer."""
    write_json(path / "config.json", families.write_model_config(config, config.num_ids, 4096))
    write_tensors(path, made_up(config))


def peak() -> float:
    """Peak resident memory of this process in GiB (Linux), mapped files included."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 2**20


def load(path: str) -> None:
    """Load a folder of weights; print what it took."""
    config = families.read_model_config(folder.read_json(Path(path) / "config.json"), path)
    config = replace(config, is_scanned=True)
    shapes, _, read_fn = folder.list_tensors(Path(path))
    jax.block_until_ready(jnp.zeros(8))
    before, start = peak(), time.perf_counter()
    unused: dict = {"tokenizer": None, "hashes": {}}
    params = load_params(
        Pretrained(path, config, shapes=shapes, read_fn=read_fn, **unused), half_params(config)
    )
    jax.block_until_ready(params)
    size = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**30
    took, seconds = peak() - before, time.perf_counter() - start
    print(
        json.dumps(
            {"size": size, "peak": took, "ratio": took / size, "before": before, "seconds": seconds}
        )
    )


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    config = parse(["load", "--config", "configs/tpu_v4.py"])[0].model
    with tempfile.TemporaryDirectory() as path:
        write_made_up(Path(path), config)
        told = subprocess.run(
            [sys.executable, "-c", LOAD.format(path)], check=True, capture_output=True, text=True
        )
    found = json.loads(told.stdout)
    print(
        f"weights {found['size']:.2f} GiB, loaded in {found['seconds']:.0f} s; peak "
        f"{found['peak']:.2f} GiB above the "
        f"{found['before']:.2f} before: {found['ratio']:.2f} times their size"
    )


if __name__ == "__main__":
    main()
