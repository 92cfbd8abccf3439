"""Adapters that leave as a folder of PEFT: what is in it, and that PEFT computes what we do."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_models import TOKENS, write_model
from safetensors.numpy import load_file
from tiny_models import random_like, read_whole

from jaxtrain.errors import UserError
from jaxtrain.hub import HubConfig, open_pretrained
from jaxtrain.hub.card import model_card
from jaxtrain.hub.export import write_adapter, write_network
from jaxtrain.hub.families import BLOCK
from jaxtrain.hub.pretrained import load_params
from jaxtrain.nn import lora
from jaxtrain.nn.transformer import Transformer, abstract_params
from jaxtrain.structs import PROJECTIONS

LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.1}
SCALE = LORA["alpha"] / LORA["rank"]
HEAD = {"weight": jnp.linspace(-1, 1, 32), "bias": jnp.float32(0.3)}


def open_adapted(folder, name, targets=PROJECTIONS, **how):
    """Return (model, base, random adapters, what the base was opened from)."""
    pretrained = open_pretrained(HubConfig(str(write_model(folder, name))))
    model = Transformer(replace(pretrained.config, **how), pretrained.config.vocab_size, SCALE)
    base = load_params(pretrained, abstract_params(model))
    fresh = lora.init(base, jax.random.key(0), LORA["rank"], targets)
    return model, base, jax.tree.map(lambda x: 0.1 * x, random_like(fresh, seed=3)), pretrained


def logits_of(model, params):
    hidden = read_whole(model, params, TOKENS, np.full(len(TOKENS), TOKENS.shape[1]))
    return hidden, np.asarray(model.apply({"params": params}, hidden, method="logits"))


@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("targets", [PROJECTIONS, ("wq", "wo")])
def test_the_folder_holds_every_adapter_under_its_name(tmp_path, targets, is_scanned):
    how = {"is_scanned": is_scanned}
    model, base, adapters, pretrained = open_adapted(tmp_path / "base", "qwen2", targets, **how)
    to = tmp_path / "out"
    tokenizer = pretrained.tokenizer
    write_adapter(to, "policy", adapters, tokenizer, "", pretrained, targets=targets, **LORA)
    tensors = load_file(to / "adapter_model.safetensors")
    whole = dict(pretrained.shapes)
    seen = set()
    for name, tensor in tensors.items():
        module, part = name.removeprefix("base_model.model.").rsplit(".lora_", 1)
        num_out, num_in = whole[f"{module}.weight"]
        expected = {"A.weight": (3, num_in), "B.weight": (num_out, 3)}[part]
        assert tensor.shape == expected and tensor.dtype == np.float32
        seen.add(module.split(".", 3)[3])
    assert seen == {BLOCK[name].removesuffix(".weight") for name in targets}
    assert len(tensors) == 2 * len(targets) * model.config.num_layers
    data = json.loads((to / "adapter_config.json").read_text())
    assert (data["r"], data["lora_alpha"], data["lora_dropout"]) == (3, 6.0, 0.1)
    assert data["base_model_name_or_path"] == "base"


def test_a_folder_is_not_written_over(tmp_path):
    _, _, adapters, pretrained = open_adapted(tmp_path / "base", "llama2")
    with pytest.raises(UserError, match="exists already"):
        write_adapter(
            tmp_path, "policy", adapters, None, "", pretrained, targets=PROJECTIONS, **LORA
        )


def test_merged_export_equals_the_forward_pass_with_adapters(tmp_path):
    model, base, adapters, pretrained = open_adapted(tmp_path / "base", "llama2")
    laid = lora.merge(base, adapters)
    folded, to = lora.fold(laid, SCALE), tmp_path / "out"
    write_network(to, "policy", folded, model.config, pretrained.tokenizer, 64, "", pretrained)
    again = open_pretrained(HubConfig(str(to)))
    params = load_params(again, abstract_params(model))
    np.testing.assert_allclose(logits_of(model, params)[1], logits_of(model, laid)[1], atol=1e-4)
    assert np.max(np.abs(logits_of(model, base)[1] - logits_of(model, laid)[1])) > 0.1


@pytest.fixture
def peft():
    pytest.importorskip("torch", reason="parity with PEFT needs torch and peft")
    return pytest.importorskip("peft", reason="parity with PEFT needs torch and peft")


@pytest.mark.filterwarnings("ignore")  # what PEFT and torch say of themselves
@pytest.mark.parametrize("is_scanned", [False, True])
@pytest.mark.parametrize("network", ["policy", "prm"])
@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen2", "qwen3"])
def test_peft_computes_what_we_do(tmp_path, monkeypatch, peft, name, network, is_scanned):
    """The code of the card loads the folder, and gives our logits, and our values."""
    import torch

    how = {"is_scanned": is_scanned}
    model, base, adapters, pretrained = open_adapted(tmp_path / "base", name, **how)
    manifest = {"seed": 0, "config_sha256": "", "git_commit": "", "facts": {}}
    card = model_card(network, 1, manifest, [], "\n", pretrained, is_adapter=True)
    params = adapters if network == "policy" else {"backbone": adapters, "head": HEAD}
    to, how = tmp_path / "out", {"targets": PROJECTIONS, **LORA}
    write_adapter(to, network, params, pretrained.tokenizer, card, pretrained, **how)

    monkeypatch.chdir(tmp_path)  # the base is named as one would tell another
    names = {}
    code = card.split("```python\n")[1].split("```")[0].split("tokens = ")[0]
    exec(code.replace('folder = "."', f"folder = {str(to)!r}"), names)
    with torch.no_grad():
        theirs = names["model"].eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    hidden, logits = logits_of(model, lora.merge(base, adapters))
    values = hidden @ HEAD["weight"] + HEAD["bias"]
    ours = logits if network == "policy" else np.asarray(values)[..., None]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
