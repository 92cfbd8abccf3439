"""Text to token ids and back. Stands below the tasks; imports nothing of ours but the error.

Both tokenizers are one class: a table of the bytes they know, after two special ids. A byte
tokenizer knows all 256; a character tokenizer knows the few ASCII characters of a task, which keeps
a small vocabulary small. Ids are `pad_id`, `end_id`, then the table in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxtrain.errors import UserError, require

NUM_SPECIALS = 2
NOT_TEXT = b"\xff"  # occurs in no UTF-8 text, so it always decodes to U+FFFD


@dataclass(frozen=True)
class AlphabetTokenizer:
    """Map text to ids, one id for each byte of its UTF-8 form.

    pad_id fills rows to their shape and is never used to tell padding from text: lengths are.
    end_id follows a finished response.
    """

    alphabet: bytes  # the bytes that have an id, each once, newline among them
    pad_id: int = 0
    end_id: int = 1

    @property
    def end_ids(self) -> tuple[int, ...]:
        return (self.end_id,)

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of every id; the special ids have none."""
        return (b"",) * NUM_SPECIALS + tuple(bytes([byte]) for byte in self.alphabet)

    @property
    def vocab_size(self) -> int:
        return NUM_SPECIALS + len(self.alphabet)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without an end id. Raises UserError for what has none."""
        try:
            return [self._ids[byte] for byte in text.encode("utf-8")]
        except (KeyError, UnicodeEncodeError):
            forms = (character.encode("utf-8", "ignore") for character in text)
            is_known = [form != b"" and {*form} <= {*self.alphabet} for form in forms]
            position = is_known.index(False)
            where = f"character {text[position]!a} at position {position} of {text[:40]!a}"
            why = "is not in the alphabet; remove it or use the byte tokenizer"
            raise UserError(f"tokenizer: {where} {why}") from None

    def encode_start(self, text: str) -> list[int]:
        """Return the ids of a text that starts a sequence; there is no begin id."""
        return self.encode(text)

    def encode_chat(self, text: str, system: str, date: str) -> list[int]:
        """Refuse: only pretrained models know a chat."""
        why = "needs a pretrained model with a chat template; choose plain"
        raise UserError(f"--config.prompts.style=chat: {why}")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text before the first end id, without one before the trailing padding.

        Any other id that stands for no text, a pad id inside the text too, becomes U+FFFD: what a
        policy sampled must not vanish on the way to the verifier.
        """
        ids = [int(i) for i in ids]
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        else:
            while ids and ids[-1] == self.pad_id:
                ids.pop()
        table = NOT_TEXT * NUM_SPECIALS + self.alphabet
        known = (table[i : i + 1] if i >= 0 else b"" for i in ids)
        return b"".join(text or NOT_TEXT for text in known).decode("utf-8", errors="replace")

    @cached_property
    def _ids(self) -> dict[int, int]:
        return {byte: NUM_SPECIALS + index for index, byte in enumerate(self.alphabet)}


def character_tokenizer(alphabet: str) -> AlphabetTokenizer:
    """Make a tokenizer of a few ASCII characters with a newline. Raises UserError for others.

    >>> ids = character_tokenizer("0123456789+=\\n").encode("1+2=3\\n")
    >>> len(ids), character_tokenizer("0123456789+=\\n").decode(ids)
    (6, '1+2=3\\n')
    """
    is_met = alphabet.isascii() and "\n" in alphabet and len({*alphabet}) == len(alphabet)
    why = "must be distinct ASCII characters with a newline among them"
    require(is_met, "tokenizer", f"alphabet {alphabet!a} {why}")
    return AlphabetTokenizer(alphabet.encode("ascii"))


def byte_tokenizer() -> AlphabetTokenizer:
    """Make a tokenizer that can encode any text."""
    return AlphabetTokenizer(bytes(range(256)))
