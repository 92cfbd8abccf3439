"""What `benchmarks.search` compares, each a process that waits until it is told to run.

An order comes in as a line of JSON, what came of it goes out as one. This file runs with whichever
checkout Python finds, and its second half without any.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import sys
import time
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCAB, WIDTH, HEADS, KV_HEADS, MLP = 49152, 576, 9, 3, 1536
END_OF_STEP, END_OF_TRACE = 1 / 26, 1 / 120
MAX_STEPS, STEP_TOKENS, PROMPT = 5, 40, 80  # as configs/smollm2_gsm.py:reduced has them
CANDIDATES, ROLLOUT = 4, 4


def token_kinds() -> tuple[np.ndarray, np.ndarray]:
    """Say which tokens end a step, and which end a trace, [V] bool each."""
    kind = np.random.default_rng(0).random(VOCAB)
    return kind < END_OF_STEP, (kind >= END_OF_STEP) & (kind < END_OF_STEP + END_OF_TRACE)


def clock() -> np.ndarray:
    """Read the clock on the wall, and the one of this process on all its cores."""
    return np.array([time.perf_counter(), time.process_time()])


def told_times(times: np.ndarray) -> dict[str, float]:
    return dict(zip(("seconds", "cpu_seconds"), times.tolist(), strict=True))


class Engine:
    """A search of whichever checkout Python finds."""

    def __init__(self, layers: int, dtype: str):
        self.layers, self.dtype, self.built = layers, dtype, {}
        self.compiling_times = np.zeros(2)

    @contextlib.contextmanager
    def compiling(self, name: str):
        start = clock()
        yield
        self.compiling_times += clock() - start
        print(f"compiled {name}", file=sys.stderr)

    def build(self, problems: int, simulations: int, settings: dict[str, Any]) -> tuple:
        """Build the search, and weights in its shape."""
        from jaxtrain.build import build
        from jaxtrain.configs.smollm2_gsm import get_config
        from jaxtrain.flags import read_config
        from jaxtrain.tasks import Task

        c: Any = get_config("reduced")
        c.hub.pretrained, c.prompts.batch_size, c.prompts.max_prompt_tokens = "", problems, PROMPT
        c.search.num_simulations = simulations
        c.model.vocab_size, c.model.num_layers, c.model.width = VOCAB, self.layers, WIDTH
        c.model.num_heads, c.model.num_kv_heads, c.model.mlp_width = HEADS, KV_HEADS, MLP
        c.model.dtype, c.model.is_scanned = self.dtype, self.dtype == "bfloat16"
        config = c.to_dict()
        config["search"] |= settings
        is_step, is_trace = token_kinds()
        says = tuple(b"\n" if ends else b"a" for ends in is_step)
        ends = tuple(np.flatnonzero(is_trace).tolist())
        tokenizer: Any = SimpleNamespace(vocab_size=VOCAB, token_bytes=says, end_ids=ends)
        progress: Any = self
        # Up to commit dc4d078 it took the tokenizer alone.
        takes_task = "task" in inspect.signature(build).parameters
        task: Any = Task("", tokenizer) if takes_task else tokenizer
        fns = build(read_config(config), task, progress)
        policy = fns.init_policy(fns.problem_keys(0, 0, np.zeros(1, np.int32))[0]).params
        # A head that tells prefixes apart.
        prm = dict(fns.init_prm(policy).params)
        weight = np.random.default_rng(1).normal(0, 0.05, WIDTH).astype(np.float32)
        prm["head"] = {"weight": weight, "bias": np.float32(0.5)}
        return fns, policy, prm

    def run(self, problems, simulations, settings, number, temperature=1.0) -> dict[str, Any]:
        import jax

        from jaxtrain.structs import Kind, Prompts

        name = json.dumps([problems, simulations, settings])
        if name not in self.built:  # one is held at a time: weights are large
            self.built = {name: self.build(problems, simulations, settings)}
        fns, policy, prm = self.built[name]
        rng, ids = np.random.default_rng(number), np.arange(problems, dtype=np.int32)
        tokens = rng.integers(0, VOCAB, (problems, PROMPT)).astype(np.int32)
        length = rng.integers(PROMPT // 2, PROMPT, problems).astype(np.int32)
        keys = fns.problem_keys(number, 1, ids)
        args = {}, policy, prm, Prompts(tokens, length, ids), keys, np.float32(temperature)
        self.compiling_times, start = np.zeros(2), clock()
        tree = jax.device_get(fns.grow["train"](*args))
        times = clock() - start - self.compiling_times
        told = {
            "tokens": tree.length,
            "policy_tokens": tree.policy_tokens,
            "prm_tokens": tree.prm_tokens,
            "lane_tokens": tree.lane_tokens,
            "steps": tree.length > 0,
            "duplicates": tree.kind == Kind.DUPLICATE,
            "wasted": tree.num_wasted,
            "simulations": tree.num_simulations,
        }
        counts = {name: int(np.sum(x)) for name, x in told.items()}
        return told_times(times) | {"problems": problems} | counts


class Torch:
    """Transformers with the same shape."""

    def __init__(self, layers: int, dtype: str):
        self.torch, transformers = import_module("torch"), import_module("transformers")
        self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
        shape = {"hidden_size": WIDTH, "intermediate_size": MLP, "vocab_size": VOCAB}
        shape |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
        config = transformers.LlamaConfig(
            **shape, num_hidden_layers=layers, tie_word_embeddings=True
        )
        self.policy, self.value = (
            transformers.LlamaForCausalLM(config).to(self.device, getattr(self.torch, dtype)).eval()
            for _ in range(2)
        )

    def prompt(self, lanes: int, size: int) -> Any:
        return self.torch.randint(0, VOCAB, (lanes, size), device=self.device)

    def sample(self, lanes: int, number: int, tokens: int = STEP_TOKENS) -> dict[str, Any]:
        """Let every lane write as many tokens, so none of them waits."""
        self.torch.manual_seed(number)
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}
        prompt, start = self.prompt(lanes, PROMPT * 3 // 4), clock()
        self.policy.generate(prompt, do_sample=True, top_k=0, **length)
        return told_times(clock() - start) | {"tokens": lanes * tokens}

    def reference(self, simulations: int, number: int) -> dict[str, Any]:
        """Search for one problem as the reference does: one call after the other."""
        torch, rng = self.torch, np.random.default_rng(number)
        torch.manual_seed(number)
        is_step, is_trace = (torch.tensor(x, device=self.device) for x in token_kinds())

        def is_over(ids, scores, **_):
            return (is_step | is_trace)[ids[:, -1]]

        def go_on(prefix: Any, depth: int) -> tuple[Any, bool, float]:
            """Draw a step behind a prefix and ask for its value."""
            how = {"max_new_tokens": STEP_TOKENS, "pad_token_id": 0, "stopping_criteria": [is_over]}
            text = self.policy.generate(prefix, do_sample=True, top_k=0, **how)
            with torch.no_grad():
                self.value.model(text)
            is_cut = not bool(is_over(text, None))
            is_ended = is_cut or bool(is_trace[text[0, -1]]) or depth + 1 >= MAX_STEPS
            return text, is_ended, float(rng.random())

        prompt = self.prompt(1, int(rng.integers(PROMPT // 2, PROMPT)))
        leaves, tokens, expansions, start = [(prompt, 0, 1.0)], 0, 0, clock()
        while leaves and expansions < simulations:
            # Expand the best leaf.
            prefix, depth, _ = leaves.pop(int(np.argmax([leaf[2] for leaf in leaves])))
            drawn = [go_on(prefix, depth) for _ in range(CANDIDATES)]
            tokens += sum(text.shape[1] - prefix.shape[1] for text, *_ in drawn)
            leaves += [(text, depth + 1, value) for text, is_ended, value in drawn if not is_ended]
            expansions += 1
            # Roll its best child out.
            (text, is_ended, _), at = max(drawn, key=lambda child: child[2]), depth + 1
            before = text.shape[1]
            while not is_ended and at < depth + 1 + ROLLOUT:
                (text, is_ended, _), at = go_on(text, at), at + 1
            tokens += text.shape[1] - before
        times = (clock() - start) * simulations / expansions
        return told_times(times) | {"tokens": tokens, "problems": 1}


def work(kind: str, layers: int, dtype: str) -> None:
    """Obey until nothing more is asked."""
    worker: Any = {"Engine": Engine, "Torch": Torch}[kind](layers, dtype)
    for line in sys.stdin:
        order = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            told = getattr(worker, order.pop("do"))(**order)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["Engine", "Torch"])
    parser.add_argument("layers", type=int)
    parser.add_argument("dtype")
    work(**vars(parser.parse_args()))
