"""Speed of decoding: milliseconds a token over lanes, against what the machine allows and beside
transformers' `generate`.

    python -m benchmarks.decode                                   # SmolLM2-135M's shape, 1 to 64
    python -m benchmarks.decode --lanes 512 1024 2048 --dtype bfloat16 --tokens 64     # a GPU

Random weights. A lane reads a prompt that it shares with its neighbours and a path of its own, both
read before the clock starts, and then draws token by token. The floors are the time that this
machine needs for the same operations in one large matrix product, and for reading the weights and
the cache once. Transformers is measured in alternation, from its first token to its
last; it is left out where torch is not installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.files import write_json
from jaxtrain.keys import fold_in
from jaxtrain.nn.sampling import draw
from jaxtrain.nn.transformer import (
    ModelConfig,
    Segment,
    Transformer,
    abstract_params,
    empty_segment,
    join,
)
from jaxtrain.nn.weights import decode_weights

SMOLLM2_135M = ModelConfig(
    num_layers=30,
    width=576,
    num_heads=9,
    num_kv_heads=3,
    mlp_width=1536,
    vocab_size=49152,
    rope_theta=100_000.0,
)


def clock(fn: Callable, *args) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*args))
    return time.perf_counter() - start


def machine(dtype: str, repeats: int = 10) -> tuple[float, float]:
    """Measure (operations, bytes read) a second: a product of 4096 squared, a sum over 1 GiB."""
    square, long = jnp.ones((4096, 4096), dtype), jnp.ones(2**28, jnp.float32)
    product, total = jax.jit(lambda x: x @ x), jax.jit(jnp.sum)
    for fn, x in ((product, square), (total, long)):
        clock(fn, x)
    best = [
        min(clock(fn, x) for _ in range(repeats)) for fn, x in ((product, square), (total, long))
    ]
    return 2 * 4096**3 / best[0], long.nbytes / best[1]


def random_params(model: Transformer) -> Any:
    """Draw weights, side by side as a program that decodes wants them."""
    rng = np.random.default_rng(0)

    def fill(path, x):
        if path[-1].key == "scale":
            return jnp.ones(x.shape)
        return jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32))

    params = jax.tree_util.tree_map_with_path(fill, abstract_params(model))
    return jax.jit(lambda x: decode_weights(model.config, x, is_split=False))(params)


def read(model: Transformer, params, tokens, start: int, segments: tuple[Segment, ...]):
    """Read tokens [rows t] from position `start` on: (their segment, last hidden states)."""
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    mask = jnp.ones(tokens.shape, bool)
    hidden, segment = model.apply({"params": params}, tokens, positions, mask, segments)
    return segment, hidden[:, -1]


def decode(model: Transformer, size: int, start: int, params, segments, own, hidden, keys):
    """Draw `size` tokens a lane behind the segments, into the last places of `own`: [b size]."""
    network, b = partial(model.apply, {"params": params}), hidden.shape[0]
    first, one = own.position.shape[1] - size, jnp.zeros((b, 1), jnp.int32)

    def next_token(at, carry):
        hidden, own, written = carry
        logits = network(hidden, method="logits")
        token = draw(logits, fold_in(keys, jnp.full(b, at)), jnp.float32(1)).token
        positions = jnp.full((b, 1), start + at)
        hidden, own = network(token[:, None], positions, one == 0, segments, own, first + at)
        return hidden[:, 0], own, written.at[:, at].set(token)

    written = jnp.zeros((b, size), jnp.int32)
    return jax.lax.fori_loop(0, size, next_token, (hidden, own, written))[2]


def ours(model: Transformer, params, lanes: int, options) -> tuple[Callable[[], float], int, float]:
    """Return (seconds a token of one run, bytes of the segments, seconds that compiling took)."""
    rng, prompts = np.random.default_rng(1), max(1, lanes // options.shared)
    draw_tokens = partial(rng.integers, 0, model.vocab_size, dtype=np.int32)
    reading = jax.jit(partial(read, model), static_argnums=2)
    prompt, hidden = reading(params, draw_tokens((prompts, options.prompt)), 0, ())
    hidden = jnp.repeat(hidden, lanes // prompts, axis=0)
    # A lane's path and what it writes are one segment, as in a search.
    own = empty_segment(prompt, lanes, options.tokens)
    if options.path:
        tokens = draw_tokens((lanes, options.path))
        path, hidden = reading(params, tokens, options.prompt, (prompt,))
        own = join(path, own)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), lanes))
    args = params, (prompt,), own, hidden, keys
    decoding = partial(decode, model, options.tokens, options.prompt + options.path)
    start = time.perf_counter()
    compiled = jax.jit(decoding).lower(*args).compile()
    seconds = time.perf_counter() - start
    clock(compiled, *args)
    # What a lane must read: of the places that it writes into, half in the mean.
    places = own.position.shape[1]
    share = (places - options.tokens / 2) / places
    prompt_bytes, own_bytes = (sum(x.nbytes for x in jax.tree.leaves(y)) for y in (prompt, own))
    cache = int(prompt_bytes + share * own_bytes)
    return lambda: clock(compiled, *args) / options.tokens, cache, seconds


def theirs(c: ModelConfig, dtype: str) -> Callable[[int, int, int], float]:
    """Return the seconds a token of transformers, by (lanes, tokens before, tokens to write)."""
    torch = import_module("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "vocab_size": c.num_ids,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "num_hidden_layers": c.num_layers,
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    model = model.to(device, getattr(torch, dtype)).eval()

    def a_token(lanes: int, before: int, num: int) -> float:
        tokens, times = torch.randint(3, c.num_ids, (lanes, before), device=device), []

        def note(ids, scores, **_):  # is asked after every token whether to stop
            times.append(time.perf_counter())
            return torch.zeros(lanes, dtype=torch.bool, device=device)

        length = {"max_new_tokens": num + 1, "min_new_tokens": num + 1, "pad_token_id": 0}
        model.generate(tokens, do_sample=True, top_k=0, stopping_criteria=[note], **length)
        # The first token comes with the reading of what stands before.
        return (times[-1] - times[0]) / num

    return a_token


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=16, help="to write in every lane")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--path", type=int, default=24, help="tokens of a lane's own before")
    parser.add_argument("--shared", type=int, default=4, help="lanes that share a prompt")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--to", type=Path, default=Path("decode.json"), help="the figures, JSON")
    options = parser.parse_args()

    config = {"dtype": options.dtype}
    config = ModelConfig(**{**vars(SMOLLM2_135M), **config})
    model = Transformer(config, config.num_ids)
    params = random_params(model)
    numbers, weights = (
        sum(getattr(x, n) for x in jax.tree.leaves(params)) for n in ("size", "nbytes")
    )
    flops, bandwidth = machine(options.dtype)
    print(f"{jax.devices()[0].device_kind}: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    peer = None
    if not options.alone and find_spec("torch") is not None:
        peer = theirs(config, options.dtype)
    print("lanes  ms a token  tokens/s  x FLOP floor  x memory floor  transformers  ratio")
    rows = []
    for lanes in options.lanes:
        run, cache, compiling = ours(model, params, lanes, options)
        best, other = [], []
        for _ in range(options.rounds):  # in alternation
            best.append(run())
            if peer is not None:
                other.append(peer(lanes, options.prompt + options.path, options.tokens))
        seconds, beside = min(best), min(other, default=None)
        row = {
            "lanes": lanes,
            "ms_a_token": 1e3 * seconds,
            "tokens_a_second": lanes / seconds,
            "flop_floor_ms": 1e3 * 2 * numbers * lanes / flops,
            "memory_floor_ms": 1e3 * (weights + cache) / bandwidth,
            "transformers_tokens_a_second": beside and lanes / beside,
            "compile_seconds": compiling,
        }
        rows.append(row)
        floors = (row["ms_a_token"] / row[name] for name in ("flop_floor_ms", "memory_floor_ms"))
        told = f"{lanes / beside:12.0f}  {beside / seconds:5.2f}" if beside else "not measured"
        print(
            f"{lanes:5}  {1e3 * seconds:10.2f}  {lanes / seconds:8.0f}  {{:12.2f}}  {{:14.2f}}  "
            f"{told}".format(*floors),
            flush=True,
        )
    told = {name: str(x) if isinstance(x, Path) else x for name, x in vars(options).items()}
    device = {"device": jax.devices()[0].device_kind, "flops": flops, "bandwidth": bandwidth}
    write_json(options.to, {**device, "options": told, "rows": rows})
    print(f"written to {options.to}")


if __name__ == "__main__":
    main()
