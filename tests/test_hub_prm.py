"""A PRM that comes in: our own export bit for bit, and one line for what another kind of PRM is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hub_models import write_model
from safetensors.numpy import load_file, save_file
from tiny_models import random_like

from jaxtrain import updates
from jaxtrain.build import build
from jaxtrain.config import Config
from jaxtrain.errors import UserError
from jaxtrain.hub import HubConfig, open_pretrained
from jaxtrain.hub.export import write_network
from jaxtrain.hub.pretrained import load_params
from jaxtrain.nn.transformer import Transformer, abstract_params
from jaxtrain.progress import Progress
from jaxtrain.tasks import Task
from jaxtrain.updates import PrmConfig, UpdatesConfig

SQUARED = PrmConfig()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Policies of two families, tied and not, and beside each our export of a PRM; its weights by
    folder.
    """
    root, prms = tmp_path_factory.mktemp("prms"), {}
    for name in ("qwen2", "llama2"):
        policy = open_pretrained(HubConfig(str(write_model(root / name, name))))
        model = Transformer(policy.config, policy.config.vocab_size)
        head = {"weight": jnp.linspace(-1, 1, model.config.width), "bias": jnp.float32(0.3)}
        prms[name] = {"backbone": random_like(abstract_params(model), 5), "head": head}
        write_network(
            root / f"{name}-prm", "prm", prms[name], model.config, policy.tokenizer, 64, "", policy
        )
    return root, prms


def start(root, name, prm, learning=SQUARED, **how):
    """Start a PRM from a folder, as a run does. Returns (its parameters, those of the policy)."""
    pretrained = open_pretrained(HubConfig(str(root / name), prm=str(prm)))
    model = replace(pretrained.config, **how)
    config = replace(Config(), model=model, updates=UpdatesConfig(prm=learning))
    with Progress(0) as progress:
        fns = build(config, Task("", pretrained.tokenizer), progress, pretrained)
    policy = load_params(pretrained, fns.abstract_state.policy.params)
    return fns.init_prm(policy).params, policy


@pytest.mark.parametrize("name", ["qwen2", "llama2"])
def test_our_own_prm_comes_back_bit_for_bit(exported, name):
    root, prms = exported
    params, policy = start(root, name, root / f"{name}-prm")
    expected = prms[name]
    if "unembedding" in policy:  # is no part of a PRM: the policy's stands in for it
        expected = expected | {
            "backbone": expected["backbone"] | {"unembedding": policy["unembedding"]}
        }
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("objective", ["binary", "bins", "pairwise"])
def test_a_prm_with_several_outputs_comes_back_too(exported, tmp_path, objective):
    """Its labels name the values that the softmax weighs."""
    root, prms = exported
    learning = PrmConfig(objective=objective, num_bins=5)
    pretrained = open_pretrained(HubConfig(str(root / "qwen2")))
    num = updates.prm.OBJECTIVES[objective].num_outputs(learning)
    model = Transformer(pretrained.config, pretrained.config.vocab_size)
    head = {"weight": jnp.linspace(-1, 1, 32 * num).reshape(32, num), "bias": jnp.arange(num) / 2}
    params = prms["qwen2"] | {"head": head}
    to = tmp_path / "prm"
    write_network(to, "prm", params, model.config, pretrained.tokenizer, 64, "", pretrained)
    found, policy = start(root, "qwen2", to, learning)
    jax.tree.map(np.testing.assert_array_equal, found["head"], head)
    labels = json.loads((to / "config.json").read_text())["id2label"]
    assert (labels["0"], labels[str(num - 1)], len(labels)) == ("value 0", "value 1", num)
    with pytest.raises(UserError, match=f"has {num} labels, .*squared reads 1; choose binary"):
        start(root, "qwen2", to)


def test_layers_may_be_scanned(exported):
    root, prms = exported
    params, _ = start(root, "qwen2", root / "qwen2-prm", is_scanned=True)
    layers = [prms["qwen2"]["backbone"][f"block_{i}"] for i in range(2)]
    jax.tree.map(
        lambda ours, *them: np.testing.assert_array_equal(ours, them),
        params["backbone"]["blocks"],
        *layers,
    )


def test_a_run_belongs_to_its_prm(exported):
    root, _ = exported
    facts = open_pretrained(HubConfig(str(root / "qwen2"), prm=str(root / "qwen2-prm"))).hashes
    assert facts["hub/prm/model.safetensors"] != facts["hub/model.safetensors"]
    assert facts["hub/prm/tokenizer"] == facts["hub/tokenizer"]


def edit(path, drop=(), **tensors):
    found = {k: v for k, v in load_file(path / "model.safetensors").items() if k not in drop}
    save_file(found | tensors, path / "model.safetensors")


def edit_json(path, file, **changes):
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | changes))


def swap_two_words(path):
    data = json.loads((path / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    edit_json(path, "tokenizer.json", **data)


def test_a_reward_model_without_a_bias_is_a_prm_too(exported, tmp_path):
    root, prms = exported
    prm = tmp_path / "prm"
    shutil.copytree(root / "qwen2-prm", prm)
    (prm / "sha256.json").unlink()
    edit_json(prm, "config.json", architectures=["Qwen2ForSequenceClassification"])
    weight = np.asarray(prms["qwen2"]["head"]["weight"])[None].astype(ml_dtypes.bfloat16)
    edit(prm, ["score.bias"], **{"score.weight": weight})
    head = start(root, "qwen2", prm)[0]["head"]
    assert (head["bias"], head["weight"].dtype) == (0.0, np.float32)
    np.testing.assert_array_equal(head["weight"], weight[0].astype(np.float32))


BAD = {
    "two labels": (
        lambda p: edit(
            p,
            **{"score.weight": np.ones((2, 32), np.float32), "score.bias": np.ones(2, np.float32)},
        ),
        "has 2 labels, and --config.updates.prm.objective=squared reads 1; choose binary, pairwise",
    ),
    "another width": (
        lambda p: edit(p, **{"score.weight": np.ones((1, 31), np.float32)}),
        r"score.weight has shape \(1, 31\), not \(labels, 32\); supported is a PRM whose head",
    ),
    "no head": (lambda p: edit(p, ["score.weight"]), "score.weight has shape None"),
    "a policy": (
        lambda p: edit_json(p, "config.json", architectures=["Qwen2ForCausalLM"]),
        "architecture Qwen2ForCausalLM is not supported as a PRM; supported are "
        "ForTokenClassification",
    ),
    "another head": (
        lambda p: edit_json(p, "config.json", architectures=["Qwen2ForProcessRewardModel"]),
        "architecture Qwen2ForProcessRewardModel is not supported as a PRM",
    ),
    "another family": (
        lambda p: edit_json(
            p,
            "config.json",
            architectures=["LlamaForTokenClassification"],
            model_type="llama",
            sliding_window=None,
        ),
        "is of another shape than",
    ),
    "another rope": (
        lambda p: edit_json(p, "config.json", rope_theta=9.0),
        "is of another shape than",
    ),
    "another vocabulary": (swap_two_words, "its tokenizer is not that of"),
    "a stray tensor": (
        lambda p: edit(p, extra=np.ones(3, np.float32)),
        "tensor extra has no place",
    ),
    "a missing tensor": (
        lambda p: edit(p, ["model.norm.weight"]),
        "tensor model.norm.weight is missing",
    ),
    "no number": (
        lambda p: edit(p, **{"score.bias": np.full(1, np.nan, np.float32)}),
        "score.bias holds a NaN",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_another_prm_is_refused_in_one_line(exported, tmp_path, case):
    root, _ = exported
    shutil.copytree(root / "qwen2-prm", tmp_path / "prm")
    (tmp_path / "prm" / "sha256.json").unlink()
    spoil, message = BAD[case]
    spoil(tmp_path / "prm")
    with pytest.raises(UserError, match=message) as caught:
        start(root, "qwen2", tmp_path / "prm")
    assert "\n" not in str(caught.value)


def test_a_prm_needs_a_policy():
    with pytest.raises(UserError, match="--config.hub.prm=x: needs --config.hub.pretrained"):
        HubConfig(prm="x")
