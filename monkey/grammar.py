"""Answers that are JSON of a schema: at each step only tokens that can go on to such a text may be chosen.

Which these are is told by llguidance, from the bytes that each token stands for.

Shape letters: V vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer  # what a server needs and nothing else does

from monkey.tokenization import QwenTokenizer
from monkey.tokenization_decoder import DecoderTokenizer

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
"""Of objects and lists in each other."""

COMPILE_SECONDS = 5.0
"""For a schema to be compiled on trial."""

KEPT = 32
"""Schemas that are not compiled again: programs send the same ones with each request."""

ANY_OBJECT = {"type": "object"}
"""The schema of any JSON object."""


_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
"""Keys under which schemas have names."""

_NESTED = ("items", "additionalProperties", "anyOf", "oneOf", "prefixItems")
"""Keys under which there is a schema, or a list of them."""


class SchemaError(ValueError):
    """A schema that no answer can be held to, and why."""


class Grammar:
    """What one answer is held to, and how far it has come.

    Args:
        end_id: the token that stands for the end where the text may end.
    """

    def __init__(self, matcher: LLMatcher, end_id: int):
        self._matcher, self._end_id = matcher, end_id

    def copy(self) -> Grammar:
        """Return the same, for another answer."""
        return Grammar(self._matcher.deep_copy(), self._end_id)

    def restrict(self, logits: torch.Tensor, end_ids: Iterable[int]) -> None:
        """Make every token impossible, in place, that cannot come next.

        Args:
            logits: [V].
            end_ids: tokens that end the answer.

        Raises:
            SchemaError: what may come next takes more work to tell than is allowed.
        """
        from monkey.grammar_trial import allowed_tokens

        try:
            bits = np.frombuffer(allowed_tokens(self._matcher), np.uint8)
        except ValueError as error:
            raise SchemaError(f"the schema cannot be followed further in this answer: {error}") from error
        known = np.unpackbits(bits, bitorder="little")[: len(logits)]
        allowed = np.zeros(len(logits), bool)  # a head may have rows that are no tokens
        allowed[: len(known)] = known
        allowed[list(end_ids)] = allowed[self._end_id]
        logits.masked_fill_(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)  # what goes wrong is told by the next `restrict`


class Grammars:
    """Makes grammars of schemas for one tokenizer; callers may be many threads."""

    def __init__(self, tokenizer: QwenTokenizer | DecoderTokenizer):
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The bytes of all tokens; takes seconds at Qwen's size."""
        end_id = self._tokenizer.eod_id
        if isinstance(self._tokenizer, QwenTokenizer):
            from llguidance.tiktoken import lltokenizer_from_encoding

            return lltokenizer_from_encoding(self._tokenizer.encoding, eos_token=end_id)
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer, eos_token=end_id)

    def compile(self, schema: dict[str, Any]) -> Grammar:
        """Return what holds an answer to a JSON schema.

        Where an object of it names properties and does not say that there may be others, there are none: with them the
        answer would be as valid, and a model that is lost would go on with them for ever.

        Raises:
            SchemaError: it is too large, too deep, takes too long, contradicts itself, or says what cannot be held to.
            ModuleNotFoundError: llguidance is not installed.
        """
        try:
            from monkey.grammar_trial import matcher_of
        except ModuleNotFoundError as error:
            message = "holding an answer to JSON needs llguidance, not installed here; `pip install '.[serve]'`"
            raise ModuleNotFoundError(message, name=error.name) from error
        written = _checked(schema)
        if '"allOf"' not in written:  # whose members would contradict each other
            schema = _close(schema)
            written = json.dumps(schema)
        with self._lock:
            matcher = self._kept.get(written)
        if matcher is None:
            _try(written)
            with self._lock:  # one at a time, as the vocabulary is made once
                matcher = self._kept[written] = matcher_of(self._vocabulary, schema)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return Grammar(matcher.deep_copy(), self._tokenizer.eod_id)


def _checked(schema: dict[str, Any]) -> str:
    """Return a schema as JSON, or raise SchemaError where it is larger or deeper than allowed."""
    depth, level = 0, [schema]
    while level := [inner for outer in level for inner in _members(outer)]:
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(f"the schema is more than {MAX_SCHEMA_DEPTH} levels deep; name its parts in $defs")
    written = json.dumps(schema)
    if len(written) > MAX_SCHEMA_BYTES:
        message = f"the schema has {len(written):,} bytes, more than the {MAX_SCHEMA_BYTES:,} allowed; shorten it"
        raise SchemaError(message)
    return written


def _close(schema: Any) -> Any:
    """Return a schema whose objects have no other properties than they name, unless it says that they may."""
    if isinstance(schema, list):
        return [_close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    names = schema.get("properties")
    if names is not None and {"anyOf", "oneOf", "$ref"} & set(schema):
        return schema  # which name others
    closed = dict(schema)
    for key in _OF_SCHEMAS:
        if isinstance(own := schema.get(key), dict):
            closed[key] = {name: _close(one) for name, one in own.items()}
    for key in _NESTED:
        if key in schema:
            closed[key] = _close(schema[key])
    if isinstance(names, dict) and not {"additionalProperties", "patternProperties"} & set(schema):
        required = schema.get("required")
        if not isinstance(required, list) or all(name in names for name in required if isinstance(name, str)):
            closed["additionalProperties"] = False
    return closed


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield from value.values() if isinstance(value, dict) else value


def _try(written: str) -> None:
    """Compile a schema in a process that is ended after `COMPILE_SECONDS`; SchemaError as of `Grammars.compile`."""
    program = Path(__file__).with_name("grammar_trial.py")
    # -P: beside the program lie modules of ours that have other things in mind than those that it imports.
    command = [sys.executable, "-P", str(program)]
    # One thread: each reserves addresses, of which the program allows itself few.
    settings = {"env": {**os.environ, "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}, "timeout": COMPILE_SECONDS}
    try:
        done = subprocess.run(command, input=written, capture_output=True, text=True, encoding="utf-8", **settings)
    except subprocess.TimeoutExpired:
        why = f"takes longer to compile than the {COMPILE_SECONDS:g} seconds allowed; simplify its patterns and numbers"
        raise SchemaError(f"the schema {why}") from None
    if why := done.stdout.strip():
        raise SchemaError(f"no answer can be held to the schema: {why}")
    if done.returncode < 0 or "MemoryError" in done.stderr:
        raise SchemaError("the schema takes more memory to compile than is allowed; simplify its patterns and numbers")
    if done.returncode:
        raise RuntimeError(f"{program.name} failed: {done.stderr.strip()}")
