"""A tokenizer of transformers behind the face that the rest of jaxtrain knows.

Every id is known by its bytes. Text is put together from them, here and in the tables that are
read inside `jit`, so that both see the same text; an id that stands for none becomes U+FFFD.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtrain.errors import explained, require
from jaxtrain.tokenizers import NOT_TEXT

VOCABULARIES = ("tokenizer.model", "vocab.json")  # what else a tokenizer can be made of
PROBE = "Ann had 12 pens.\n"
USE_PLAIN = "choose plain or few_shot"
CLOCK = re.compile(r"""strftime_now\s*\(\s*(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")


@dataclass(frozen=True)
class HubTokenizer:
    """Map text to ids and back, by a fast tokenizer of transformers."""

    fast: Any  # transformers.PreTrainedTokenizerFast
    vocab_size: int  # rows of the embedding, which may be more than the tokenizer has ids
    end_ids: tuple[int, ...]  # any of them ends a response; the first is the one that is written
    token_bytes: tuple[bytes, ...]  # of every id

    @property
    def end_id(self) -> int:
        return self.end_ids[0]

    @property
    def pad_id(self) -> int:
        return self.end_id if self.fast.pad_token_id is None else self.fast.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text that continues another; special tokens it spells are text.

        Sentencepiece vocabularies put a space before a text, but not behind a newline.
        """
        encode = partial(self.fast.encode, add_special_tokens=False, split_special_tokens=True)
        ids = encode(text)
        if self.decode(ids) != " " + text:
            return ids
        newline, both = encode("\n"), encode("\n" + text)
        return both[len(newline) :] if both[: len(newline)] == newline else ids

    def encode_start(self, text: str) -> list[int]:
        """Return the ids of a text that starts a sequence: begin ids, but none of an end."""
        ids = self.fast.encode(text, split_special_tokens=True)
        return ids[: len(ids) - self.num_behind]

    def encode_chat(self, text: str, system: str, date: str) -> list[int]:
        """Return the ids of one user's turn in the model's chat template, up to its answer.

        The template's own tags are special ids; those that `text` or `system` spell are text.
        Raises UserError where there is no template, or it fails.
        """
        style, told = "--config.prompts.style=chat", f"the model has no chat template; {USE_PLAIN}"
        require(bool(self.fast.chat_template), style, told)
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": text})
        # A template may refuse a system text, or fail in any other way.
        with explained(f"{style}: the model's template fails", USE_PLAIN):
            return self.fast.apply_chat_template(
                turns,
                chat_template=stop_clock(self.fast.get_chat_template(), date),
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=True,
            )

    @cached_property
    def num_behind(self) -> int:
        """Count the special ids that the tokenizer puts behind a text."""
        mask = self.fast(PROBE, return_special_tokens_mask=True)["special_tokens_mask"]
        return mask[::-1].index(0)

    @cached_property
    def sha256(self) -> str:
        """Hash all that turns text into ids: vocabulary, merges, added tokens, normalising."""
        backend = json.loads(self.fast.backend_tokenizer.to_str())
        parts = ("normalizer", "pre_tokenizer", "post_processor", "added_tokens", "model")
        what = json.dumps([backend[part] for part in parts], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text before the first end id."""
        parts = []
        for i in ids:
            if int(i) in self.end_ids:
                break
            parts.append(self.token_bytes[int(i)])
        return b"".join(parts).decode("utf-8", errors="replace")


def list_token_bytes(fast: Any, vocab_size: int) -> tuple[bytes, ...]:
    """List the bytes of every id, as a byte-level or a sentencepiece vocabulary spells them."""
    backend = json.loads(fast.backend_tokenizer.to_str())
    is_byte_level = "ByteLevel" in json.dumps(backend["decoder"])
    added = {token["id"] for token in backend["added_tokens"]}
    largest, table = max(fast.get_vocab().values()), byte_of_character()

    def bytes_of(i: int) -> bytes:
        token = fast.convert_ids_to_tokens(i) if i <= largest else None
        if token is None:
            return NOT_TEXT
        if is_byte_level and i not in added and all(c in table for c in token):
            return bytes(table[c] for c in token)
        if is_byte_level or i in added:
            return token.encode()
        match = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode()

    return tuple(bytes_of(i) for i in range(vocab_size))


def stop_clock(template: str, date: str) -> str:
    """Put a date (YYYY-MM-DD) where a template asks for today's. Raises UserError without one."""
    if not CLOCK.search(template):
        return template
    told = "the chat template reads the clock; set the day, as YYYY-MM-DD"
    require(date != "", "--config.prompts.date", told)
    day = datetime.date.fromisoformat(date)
    template = CLOCK.sub(lambda call: json.dumps(day.strftime(call["format"])), template)
    if re.search(r"strftime_now\s*\(", template):
        raise ValueError("it reads the clock in a way that no date can be put in for")
    return template


def byte_of_character() -> dict[str, int]:
    """Return the byte that each character stands for in a byte-level vocabulary (GPT-2's table)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def byte_level(
    vocabulary: dict[str, int], merges: list[Any], special: Sequence[str], split: Any, **names: Any
) -> Any:
    """Make a fast tokenizer over GPT-2's characters; `split` is a pre-tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE(vocabulary, merges))
    fast.pre_tokenizer = split
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    names |= {"clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=fast, **names)


def read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a folder through transformers; no code of the folder runs.

    A tokenizer.json is read as it is: AutoTokenizer may change how text is split. Raises UserError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_whole = (folder / "tokenizer.json").exists()
    # Without any of its files transformers makes a tokenizer that knows nothing.
    is_there = is_whole or any((folder / name).exists() for name in VOCABULARIES)
    require(is_there, folder, "tokenizer.json is missing; fetch the model again")
    kind: Any = PreTrainedTokenizerFast if is_whole else AutoTokenizer
    with explained(f"{folder}: its tokenizer cannot be read"):
        fast = kind.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    told = "its tokenizer is no fast one; tokenizer.json is missing"
    require(isinstance(fast, PreTrainedTokenizerFast), folder, told)
    return fast


def wrap(fast: Any, vocab_size: int, end_ids: Sequence[int], where: str) -> HubTokenizer:
    """Put the face on a tokenizer. Raises UserError if it cannot be that of `vocab_size` ids."""
    largest = max(fast.get_vocab().values(), default=-1)
    told = f"the tokenizer has id {largest}, the embedding {vocab_size} rows"
    require(largest < vocab_size, where, f"{told}; they are not of one model")
    end_ids = tuple(i for i in dict.fromkeys(end_ids) if isinstance(i, int) and 0 <= i < vocab_size)
    told = "neither the tokenizer nor generation_config.json names an end token (eos)"
    require(end_ids != (), where, told)
    tokenizer = HubTokenizer(fast, vocab_size, end_ids, list_token_bytes(fast, vocab_size))
    told = "the tokenizer does not give text back as it was; it is of a kind not supported"
    require(tokenizer.decode(tokenizer.encode(PROBE)).strip() == PROBE.strip(), where, told)
    return tokenizer
