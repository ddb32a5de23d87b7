"""How tokens are chosen: greedily, or sampled with random numbers of each request's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # programs check these settings before they import it

from monkey import checkpoint_card
from monkey.checkpoint_card import Sampling

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 100.0
"""Logits divided by much less are infinite, which would fail every answer of the running batch; and long before the
highest is reached, every token is as likely as the next."""


MAX_LOGPROBS = 20
"""As OpenAI has it."""

_CAME_LATER = ("top_k", "repetition_penalty", "frequency_penalty", "presence_penalty", "logprobs")
_PENALTIES = (("repetition_penalty", 0.1, 10.0), ("frequency_penalty", -2.0, 2.0), ("presence_penalty", -2.0, 2.0))
"""Lowest and highest; the last two as OpenAI has them."""


@dataclass(frozen=True)
class Decoding:
    """How the tokens of one answer are chosen, and when it ends.

    Raises:
        ValueError: a setting that means nothing, by its name.
    """

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token every time; above, tokens are sampled."""
    seed: int | None = None
    """For sampling: the same image, prompt and seed give the same text. None gives another text every time."""
    top_p: float = 1.0
    """For sampling: only the likeliest tokens that together have this probability."""
    top_k: int = 0
    """For sampling: only so many of the likeliest tokens; 0 is all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that stand in the prompt or the answer, and multiplies negative ones."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that the answer has it."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token once, where the answer has it."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, and are no part of it."""
    confidence: bool = False
    """Whether the answer's confidence is computed too."""
    logprobs: int | None = None
    """Of each token its log-probability is told, and those of so many of the likeliest; None tells nothing."""
    keep_markers: bool = True
    """Whether `<ref>`, `<box>` and their like, which are special tokens, stay in the answer."""

    def __post_init__(self):
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens!r}, and a whole number from 1 is needed")
        if not _is_number(self.temperature) or not (
            self.temperature == 0 or LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE
        ):
            raise ValueError(
                f"temperature is {self.temperature!r}, and 0, which is greedy, or a number from {LOWEST_TEMPERATURE} "
                f"to {HIGHEST_TEMPERATURE:g} is needed"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}, and a number above 0 and up to 1 is needed; 1 is all tokens")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}, and a whole number from 0 is needed; 0 is all tokens")
        for name, lowest, highest in _PENALTIES:
            if not _is_number(value := getattr(self, name)) or not lowest <= value <= highest:
                raise ValueError(f"{name} is {value!r}, and a number from {lowest:g} to {highest:g} is needed")
        if self.logprobs is not None and not (_is_whole(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS):
            raise ValueError(f"logprobs is {self.logprobs!r}, and a whole number from 0 to {MAX_LOGPROBS} is needed")
        if self.seed is not None and not (_is_whole(self.seed) and -(2**63) <= self.seed < 2**64):
            raise ValueError(f"seed is {self.seed!r}, and a whole number of 64 bits is needed")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop is {self.stop!r}, and texts that are not empty are needed")
        object.__setattr__(self, "stop", stop)

    def recorded(self) -> dict[str, Any]:
        """Return the settings for a key of answers; what came later is among them only where it is set.

        So answers that were kept before a setting existed are still those that are asked for.
        """
        settings = asdict(self)
        unset = [name for name in _CAME_LATER if settings[name] == getattr(Decoding, name)]
        return {name: value for name, value in settings.items() if name not in unset}

    @property
    def penalises(self) -> bool:
        """Whether what was written before changes what comes next."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def decoding_of(sampling: Sampling) -> Decoding:
    """What a checkpoint's card says of how tokens are chosen."""
    return Decoding(**asdict(sampling))


FOR_ANSWERS, FOR_DESCRIPTIONS = map(decoding_of, (checkpoint_card.FOR_ANSWERS, checkpoint_card.FOR_DESCRIPTIONS))
"""As the published demo answers questions and describes images; a checkpoint's card may say otherwise."""


def make_generator(decoding: Decoding, device: torch.device) -> torch.Generator | None:
    """Return random numbers for one answer, on the device of its logits; None for a greedy one."""
    if not decoding.temperature:
        return None
    import torch

    generator = torch.Generator(device)
    if decoding.seed is None:
        generator.seed()
    else:
        generator.manual_seed(decoding.seed)
    return generator


def penalise(logits: torch.Tensor, decoding: Decoding, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Change `logits` [vocabulary], in place, for the tokens that were there before.

    As transformers has it for the prompt and the answer (`repetition_penalty`), and OpenAI for the answer alone.
    """
    import torch

    if decoding.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *answer}), device=logits.device)
        own, penalty = logits[seen], decoding.repetition_penalty
        logits[seen] = torch.where(own > 0, own / penalty, own * penalty)
    if answer:
        counts = torch.bincount(torch.tensor(answer, device=logits.device), minlength=len(logits))
        logits -= decoding.frequency_penalty * counts + decoding.presence_penalty * (counts > 0)


def choose_tokens(
    logits: torch.Tensor, decodings: Sequence[Decoding], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """Return the next token of each row of `logits` [N, vocabulary], which are fp32."""
    tokens = logits.argmax(dim=-1)
    for row, (decoding, generator) in enumerate(zip(decodings, generators, strict=True)):
        if generator is not None:
            tokens[row] = _sample(logits[row], decoding, generator)
    return tokens.tolist()


def _sample(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator) -> torch.Tensor:
    """Draw a token by its probability among `logits` [vocabulary]."""
    import torch

    if 0 < decoding.top_k < len(logits):
        kept, tokens = logits.topk(decoding.top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(0, tokens, kept)
    probabilities = (logits / decoding.temperature).softmax(dim=-1)
    if decoding.top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator)[0]
    ordered, tokens = probabilities.sort(descending=True)
    # The first token that reaches the limit belongs to the choice, and the likeliest always, however small the limit.
    ordered[1:][ordered.cumsum(dim=-1)[:-1] >= decoding.top_p] = 0
    return tokens[torch.multinomial(ordered, 1, generator=generator)[0]]
