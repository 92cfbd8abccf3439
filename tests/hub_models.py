"""Tiny random models in Hugging Face's form, one of each family, made of numpy's random numbers:
the same everywhere.

    python tests/hub_models.py      # computes the golden logits anew, with torch and transformers

The golden logits in tests/golden.npz are those of transformers on CPU in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden.npz"
VOCAB, WIDTH, HEADS, KV_HEADS, MLP, LAYERS = 96, 32, 4, 2, 48, 2
TOKENS = np.random.default_rng(0).integers(3, VOCAB, (2, 20)).astype(np.int32)

COMMON = {
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, dict] = {
    "llama2": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_scaling": LLAMA3,
    },
    "llama3_new_form": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_theta": None,
        "rope_parameters": LLAMA3 | {"rope_theta": 1000.0},
    },
    "smollm2": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 6,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 4,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 12},
}


def config_of(name: str) -> dict:
    """Return the config.json of a model."""
    data = COMMON | MODELS[name]
    return {key: value for key, value in data.items() if value is not None}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """Return the weights of a model under Hugging Face's names."""
    config = config_of(name)
    head = config.get("head_dim", WIDTH // HEADS)
    rng = np.random.default_rng(
        sorted(MODELS).index(name) if name != "llama3_new_form" else sorted(MODELS).index("llama3")
    )

    def matrix(num_out: int, num_in: int) -> np.ndarray:
        return (rng.normal(size=(num_out, num_in)) * 1.5 / num_in**0.5).astype(np.float32)

    def vector(size: int, mean: float) -> np.ndarray:
        return (mean + 0.3 * rng.normal(size=size)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(VOCAB, WIDTH),
        "model.norm.weight": vector(WIDTH, 1.0),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(VOCAB, WIDTH)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for part, num_heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            tensors[f"{at}self_attn.{part}_proj.weight"] = matrix(num_heads * head, WIDTH)
            if config["model_type"] == "qwen2":
                tensors[f"{at}self_attn.{part}_proj.bias"] = vector(num_heads * head, 0.0)
            if config["model_type"] == "qwen3" and part != "v":
                tensors[f"{at}self_attn.{part}_norm.weight"] = vector(head, 1.0)
        tensors[f"{at}self_attn.o_proj.weight"] = matrix(WIDTH, HEADS * head)
        tensors[f"{at}mlp.gate_proj.weight"] = matrix(MLP, WIDTH)
        tensors[f"{at}mlp.up_proj.weight"] = matrix(MLP, WIDTH)
        tensors[f"{at}mlp.down_proj.weight"] = matrix(WIDTH, MLP)
        tensors[f"{at}input_layernorm.weight"] = vector(WIDTH, 1.0)
        tensors[f"{at}post_attention_layernorm.weight"] = vector(WIDTH, 1.0)
    return tensors


def tiny_tokenizer():
    """Make a byte-level tokenizer with a few merges, an end token and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set("abcdefghijklmnopqrstuvwxyzABQ:0123456789+-*/=.,#{}\\?$ĠĊ"))
    merges = [
        ("Ċ", "Ċ"),
        ("#", "#"),
        ("##", "##"),
        ("Ġ", "#"),
        (".", "Ċ"),
        ("Ġ", "a"),
        ("}", "Ċ"),
        ("1", "2"),
    ]
    vocab = [
        "<begin>",
        "<end>",
        "<|user|>",
        *characters,
        *("".join(merge) for merge in merges),
        *"<|>",
    ]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in vocab[:3]]
    )
    template = "{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}A:"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<begin>", eos_token="<end>", chat_template=template
    )


def write_model(folder: Path, name: str) -> Path:
    """Write a model as a folder: config, weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(name)))
    save_file(tensors_of(name), folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def golden_states(folder: Path) -> dict[str, np.ndarray]:
    """Run transformers' own code on a folder: logits, and the hidden states after every layer."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        out = model(torch.from_numpy(TOKENS.astype(np.int64)), output_hidden_states=True)
    return {
        "logits": out.logits.numpy(),
        "hidden": np.stack([state.numpy() for state in out.hidden_states]),
    }


if __name__ == "__main__":
    import tempfile

    arrays = {}
    for model_name in MODELS:
        with tempfile.TemporaryDirectory() as path:
            for key, value in golden_states(write_model(Path(path), model_name)).items():
                arrays[f"{model_name}/{key}"] = value
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")
