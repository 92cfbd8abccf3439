"""Adapters through the whole command: a run that trains them, goes on, is scored, and leaves."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from hub_models import write_model
from safetensors.numpy import load_file
from test_pretrained import FLAGS

from jaxtrain.build import build
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.hub import HubConfig
from jaxtrain.main import main
from jaxtrain.runs import open_run
from jaxtrain.tasks import Task
from jaxtrain.updates import LoraConfig, UpdatesConfig

LORA = {
    "evaluation.strategies": "greedy",
    "updates.lora.rank": 4,
    "updates.lora.targets": "wq,wo,up,down",
    "updates.lora.dropout": 0.1,
    "updates.policy.warm_start.num_updates": 60,
    "updates.policy.warm_start.learning_rate": 0.05,
}


def run_flags(root, name, num_iterations):
    flags = {"hub.pretrained": root / "model", "tasks.jsonl.path": root / "train.jsonl"}
    flags = FLAGS | flags | LORA | {"loop.num_iterations": num_iterations}
    told = [f"--config.{key}={value}" for key, value in flags.items()]
    return ["main", "--config", "configs/base.py", "--workdir", str(root / name), *told]


@pytest.fixture(scope="module")
def root(compile_cache, tmp_path_factory):
    """One run straight to iteration 1, and one that stopped after its warm start and went on."""
    root = tmp_path_factory.mktemp("lora")
    write_model(root / "model", "llama2")
    rows = [{"question": f"a has {n}. how many?", "answer": "it is 7.\n#### 7"} for n in range(24)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, num_iterations in (("straight", 1), ("halves", 0), ("halves", 1)):
        assert main(run_flags(root, name, num_iterations)) == 0
    return root


def state_of(path):
    """Return (the last State of a run, its config, the functions it is made with)."""
    run = open_run(path)
    assert run.pretrained is not None
    fns = build(run.config, Task("", run.pretrained.tokenizer), pretrained=run.pretrained)
    with run.checkpoints() as checkpoints:
        return checkpoints.restore(1, fns.abstract_state, fns.init_base()), run.config, fns


def metrics_of(path):
    events = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in events]


def test_both_networks_learn_over_one_base_that_stays(root):
    metrics = {}
    for row in metrics_of(root / "straight"):
        metrics.setdefault(row["iteration"], {}).update(row)
    assert metrics[1]["labels/num_correct"] > 0, "sixty updates on one answer teach it"
    for name in ("policy", "prm"):
        assert np.all(np.isfinite([metrics[i][f"updates/{name}/loss"] for i in (0, 1)]))
        assert metrics[1][f"updates/{name}/num_updates"] == 1
    state, config, _ = state_of(root / "straight")
    learnt = {"policy": state.policy.params, "prm": state.prm.params["backbone"]}
    for adapters in learnt.values():
        names = {f"{name}{part}" for name in config.updates.lora.targets for part in ("_a", "_b")}
        assert set(adapters) == {"blocks"} and set(adapters["blocks"]) == names
        assert all(np.any(x != 0) for x in jax.tree.leaves(adapters))
    assert not np.array_equal(learnt["policy"]["blocks"]["up_b"], learnt["prm"]["blocks"]["up_b"])
    tensors = load_file(root / "model" / "model.safetensors")
    np.testing.assert_array_equal(state.base["embedding"], tensors["model.embed_tokens.weight"])
    moments = jax.tree.leaves(state.policy.opt_state)
    assert sum(x.size for x in moments) < 3 * sum(x.size for x in jax.tree.leaves(learnt["policy"]))


def test_a_run_that_went_on_is_the_same_bit_for_bit(root):
    assert metrics_of(root / "straight") == metrics_of(root / "halves")
    states = [state_of(root / name)[0] for name in ("straight", "halves")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_checkpoint_scored_again_scores_the_same(root, tmp_path):
    how = ["--to", str(tmp_path / "out"), "--iteration", "1"]
    assert main(["jaxtrain", "evaluate", "--workdir", str(root / "straight"), *how]) == 0
    (again,) = metrics_of(tmp_path / "out")
    first = [x for x in metrics_of(root / "straight") if "evaluation/greedy/accuracy" in x][-1]
    expected = {key: value for key, value in first.items() if key.startswith("evaluation/")}
    assert {key: again[key] for key in expected} == expected


@pytest.mark.parametrize("network", ["policy", "prm"])
def test_a_network_leaves_merged_or_as_its_adapters(root, tmp_path, network):
    how = ["--workdir", str(root / "straight"), "--network", network, "--to"]
    assert main(["jaxtrain", "export", *how, str(tmp_path / "merged")]) == 0
    assert main(["jaxtrain", "export", *how, str(tmp_path / "alone"), "--adapter"]) == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    alone = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    base = load_file(root / "model" / "model.safetensors")
    config = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    for name in base.keys() & merged.keys():
        module, expected = f"base_model.model.{name.removesuffix('.weight')}", base[name]
        if (a := alone.get(f"{module}.lora_A.weight")) is not None:
            expected = expected + scale * alone[f"{module}.lora_B.weight"] @ a
            assert not np.array_equal(base[name], merged[name])
        np.testing.assert_allclose(merged[name], expected, rtol=0, atol=1e-5, err_msg=name)
    assert ("base_model.model.score.weight" in alone) == (network == "prm")
    assert "PeftModel" in (tmp_path / "alone" / "README.md").read_text()


def test_what_has_no_adapters_is_told(root, tmp_path, capsys):
    shutil.copytree(root / "straight", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["updates"]["lora"]["rank"] = None
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    how = ["--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "out"), "--adapter"]
    assert main(["jaxtrain", "export", *how]) == 2
    assert "trained all weights; leave --adapter out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"rank": 0}, r"lora.rank=0: must be 1 or more"),
        ({"targets": ()}, r"lora.targets=: must be some of wq, wk"),
        ({"targets": ("wq", "embedding")}, r"lora.targets=wq,embedding: must be some of"),
        ({"dropout": 1.0}, r"lora.dropout=1.0: must be below 1"),
    ],
)
def test_a_bad_value_is_told(fault, told):
    with pytest.raises(UserError, match=told):
        UpdatesConfig(lora=LoraConfig(**fault))


def test_a_prm_of_its_own_has_no_shared_base():
    hub, updates = HubConfig("a", prm="b"), UpdatesConfig(lora=LoraConfig(rank=4))
    with pytest.raises(UserError, match="hub.prm=b: has weights of its own"):
        Config(hub=hub, updates=updates)
