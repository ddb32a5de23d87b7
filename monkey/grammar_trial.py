"""What JSON of a schema is written by, and whether that can be made at all, and in time.

The second is tried by running this file as a program, which is all that its caller can end: a thread that compiles a
schema such as `{"type": "integer", "multipleOf": 1000003}` goes on for minutes. So nothing but Python and llguidance is
imported here. The schema comes on standard input; why there is no grammar goes to standard output, in one sentence.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python writes JSON: white space that is free would let a model that is lost go on with blanks for ever."""

LIMITS = LLParserLimits(max_grammar_size=20_000, step_lexer_fuel=50_000, verbose_errors=False)
"""Of what a step may cost, at which all other answers wait: tens of milliseconds at a vocabulary of 152,000."""

TRIAL_TOKENS = 200
"""That are written on trial, since a lexer is built as it is needed."""

MEMORY_BYTES = 2 * 2**30


def matcher_of(tokenizer: LLTokenizer, schema: dict[str, Any]) -> LLMatcher:
    """Return what says which tokens may come next in JSON of a schema.

    Raises:
        ValueError: the schema means nothing, allows nothing, or says what is not supported here.
    """
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=WRITTEN)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    allowed_tokens(matcher)
    return matcher


def allowed_tokens(matcher: LLMatcher) -> bytes:
    """Return which tokens may come next, a bit for each; ValueError where that cannot be told."""
    bits = matcher.compute_bitmask()
    if matcher.is_error():
        raise ValueError(_in_a_sentence(matcher.get_error()))
    return bits


def _in_a_sentence(error: str) -> str:
    """Return what the library says of a schema, without what it says of itself."""
    error = " ".join(error.replace("<non-verbose/>", "").split())
    if error.startswith("NoExtension"):
        return "no text can ever have this form"
    if "ff_tokens" in error:  # what is written without a choice goes on for more than its limit
        return "a text of this form never ends; let it have an end, as null or an empty list"
    return error if len(error) <= 200 else error[:199] + "…"


class _Bytes:
    """A vocabulary of the 256 bytes and an end, as llguidance reads one."""

    is_tokenizer_wrapper = True
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def try_schema(schema: dict[str, Any]) -> None:
    """Compile a schema and write something of its form; ValueError as of `matcher_of`."""
    matcher = matcher_of(LLTokenizer(_Bytes(), slices=[]), schema)
    for number in range(TRIAL_TOKENS):
        bits = int.from_bytes(allowed_tokens(matcher), "little")
        choices = [byte for byte in range(_Bytes.eos_token_id) if bits >> byte & 1]
        if not choices:
            return
        # Another byte each time, so that strings and repetitions are gone into and not only ended.
        matcher.consume_token(choices[number * 7919 % len(choices)])


def main() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # where a process cannot be limited, its caller can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        try_schema(json.load(sys.stdin))
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
