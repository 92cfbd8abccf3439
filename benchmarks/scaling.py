"""How a search grows with what is asked of it, and with devices.

    python -m benchmarks.scaling                    # CPU, a tiny network, eight forced devices

Time and tokens against simulations and against problems, each with a straight line fitted; what
the compiled program says to its neighbours inside the loop of the search, with the batch split over
data and fsdp; and its memory on one device as devices are added, each with as many problems. For a
TPU the same is read off the program that libtpu compiles, where it is installed (jaxtrain[plan]).

Slots are the turns of decoding times the lanes that take part: what time would be linear in on a
machine that nobody shares. Weights are random: trees are as large as their budget allows.
"""

from __future__ import annotations

import argparse
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from jaxtrain.boundaries import TraceConfig
from jaxtrain.build import build
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.files import write_json
from jaxtrain.nn.transformer import ModelConfig
from jaxtrain.plan import calls_of, devices_of
from jaxtrain.prompts import PromptsConfig
from jaxtrain.search import SearchConfig
from jaxtrain.sharding import ShardingConfig, make_mesh
from jaxtrain.structs import Prompts
from jaxtrain.tasks import Task

MIB, VOCAB, PROMPT = 2**20, 256, 16
KIND = np.random.default_rng(0).random(VOCAB)
TOKENIZER: Any = SimpleNamespace(
    vocab_size=VOCAB,
    token_bytes=tuple(b"\n" if x < 1 / 8 else b"a" for x in KIND),
    end_ids=tuple(np.flatnonzero(KIND > 1 - 1 / 32).tolist()),
)
TASK = Task("", TOKENIZER)
SILENT: Any = SimpleNamespace(compiling=lambda name: nullcontext(), note=lambda text: None)
CONFIG = Config(
    model=ModelConfig(num_layers=1, width=64, num_heads=4, num_kv_heads=2, mlp_width=128),
    prompts=PromptsConfig(max_prompt_tokens=PROMPT),
    trace=TraceConfig(max_steps=6, max_step_tokens=16),
    search=SearchConfig(num_simulations=8, num_trees=8, num_lanes=1, chunk_tokens=8),
)


def config_of(problems: int, simulations: int = 8) -> Config:
    """Make the config of a batch."""
    return replace(
        CONFIG,
        prompts=replace(CONFIG.prompts, batch_size=problems),
        search=replace(CONFIG.search, num_simulations=simulations),
    )


# Time and tokens.


@cache
def make_run(problems: int, simulations: int):
    """Compile a search on one device: a function that runs it -> (seconds, tree)."""
    config = config_of(problems, simulations)
    fns = build(config, TASK, SILENT, mesh=make_mesh(ShardingConfig(), jax.devices()[:1]))
    policy = fns.init_policy(np.array([1, 2], np.uint32)).params
    prm = dict(fns.init_prm(policy).params)
    rng = np.random.default_rng(problems)
    weight = rng.normal(0, 0.1, CONFIG.model.width).astype(np.float32)
    prm["head"] = {"weight": weight, "bias": np.float32(0.5)}
    ids, tokens = np.arange(problems, dtype=np.int32), rng.integers(0, VOCAB, (problems, PROMPT))
    prompts = Prompts(tokens.astype(np.int32), np.full(problems, PROMPT, np.int32), ids)
    args = {}, policy, prm, prompts, fns.problem_keys(0, 1, ids), np.float32(1)

    def run() -> tuple[float, Any]:
        start = time.perf_counter()
        tree = jax.device_get(fns.grow["train"](*args))
        return time.perf_counter() - start, tree

    run()
    return run


def straightness(x: list[int], y: list[float]) -> float:
    """Return r^2 of the straight line through points."""
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def grow_with(what: str, asked: dict[int, tuple[int, int]], rounds: int) -> dict[str, Any]:
    """Run searches of several sizes in alternation, and fit a line to what they take."""
    runs = {size: make_run(*order) for size, order in asked.items()}
    found = [{size: run() for size, run in runs.items()} for _ in range(rounds)]
    print(f"\n{what:12}  seconds  policy tokens  PRM tokens   slots  useful lanes")
    rows = []
    for size in asked:
        tree = found[0][size][1]
        row = {
            what: size,
            "seconds": min(again[size][0] for again in found),
            "policy_tokens": int(tree.policy_tokens.sum()),
            "prm_tokens": int(tree.prm_tokens.sum()),
            "slots": int(tree.lane_tokens.sum()),
            "useful_lanes": float(tree.length.sum() / tree.lane_tokens.sum()),
        }
        rows.append(row)
        counts = (row[name] for name in ("policy_tokens", "prm_tokens", "slots"))
        print(
            f"{size:12}  {row['seconds']:7.2f}  {{:13}}  {{:10}}  {{:6}}  "
            f"{row['useful_lanes']:12.0%}".format(*counts),
            flush=True,
        )
    names = "seconds", "policy_tokens", "prm_tokens", "slots"
    fits = {n: straightness(list(asked), [float(row[n]) for row in rows]) for n in names}
    told = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in fits.items())
    print(f"r^2 of a line: {told}")
    return {"rows": rows, "r2": fits}


# Devices.


def collectives_in_loops(text: str) -> list[str]:
    """Find the collectives in what the loops of a compiled program compute, called or fused."""
    parts: dict[str, str] = {}
    for part in re.split(r"\n(?=\S)", text):
        name = part.removeprefix("ENTRY ").split(maxsplit=1)[0].lstrip("%") if part.strip() else ""
        parts[name] = part
    waiting, seen = re.findall(r"(?:body|condition)=%?([\w.-]+)", text), set()
    if not waiting:
        raise SystemExit("the compiled program holds no loop: its text is not understood any more")
    while waiting:
        name = waiting.pop()
        if name not in seen and name in parts:
            seen.add(name)
            waiting += re.findall(r"%([\w.-]+)", parts[name])
    found = r" ((?:all-|reduce-scatter|collective-)[\w-]*)\("
    return [op for name in seen for op in re.findall(found, parts[name])]


def compile_on(devices: list[Any], data: int, fsdp: int, problems: int) -> dict[str, Any]:
    """Compile a search for `problems` a device, and read it."""
    mesh = make_mesh(ShardingConfig(data, fsdp, 1), devices[: data * fsdp])
    config = config_of(problems * data * fsdp)
    start = time.perf_counter()
    fn, args = calls_of(config, build(config, TASK, SILENT, mesh=mesh), mesh)["search"]
    compiled = fn.jitted.lower(*args).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return {
        "data": data,
        "fsdp": fsdp,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "result_bytes": memory.output_size_in_bytes,
        "in_loops": collectives_in_loops(text),
        "outside": len(re.findall(r" (?:all-|reduce-scatter|collective-)[\w-]*\(", text)),
        "seconds": time.perf_counter() - start,
    }


def spread(where: str, devices: list[Any], problems: int) -> list[dict[str, Any]]:
    """Compile for ever more devices, with data alone and with weights split too."""
    sizes = [2**i for i in range(len(devices).bit_length())]
    meshes = [(size, 1) for size in sizes] + [(size // 2, 2) for size in sizes[-1:]]
    if where != "cpu":  # a topology is compiled for as a whole
        meshes = meshes[-2:]
    rows = []
    for data, fsdp in meshes:
        row: dict[str, Any] = {"where": where} | compile_on(devices, data, fsdp, problems)
        rows.append(row)
        sizes = [row[f"{name}_bytes"] / MIB for name in ("temporary", "argument", "result")]
        print(
            f"{where:10}  {data:4}  {fsdp:4}  {{:9.3f}}  {{:9.3f}}  {{:7.3f}}  "
            f"{len(row['in_loops']):8}  {row['outside']:6}".format(*sizes),
            flush=True,
        )
    return rows


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--simulations", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--problems", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--a-device", type=int, default=8, help="problems of each device")
    parser.add_argument("--topologies", nargs="*", default=["v4:2x2x1", "v4:2x2x4"])
    parser.add_argument("--to", type=Path, default=Path("scaling.json"), help="the figures, JSON")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)

    # Time and tokens.
    by_simulations = {n: (options.problems[0], n) for n in options.simulations}
    by_problems = {n: (n, 8) for n in options.problems}
    told: dict[str, Any] = {
        "simulations": grow_with("simulations", by_simulations, options.rounds),
        "problems": grow_with("problems", by_problems, options.rounds),
    }

    # Devices: here, and those that libtpu knows.
    print(f"\nMiB a device, {options.a_device} problems each; collectives in loops, and in all")
    print("where       data  fsdp  temporary  arguments  results  in loops  in all")
    told["devices"] = spread("cpu", jax.devices("cpu"), options.a_device)
    for topology in options.topologies:
        try:
            devices = devices_of(topology)[0] or []
        except UserError as error:
            print(f"{topology}: left out: {error}")
            continue
        told["devices"] += spread(topology, devices, options.a_device)
    write_json(options.to, told)
    print(f"written to {options.to}")


if __name__ == "__main__":
    main()
