"""From what the experts saw to one description: ask, check, ask once more where a rule is broken, and flag.

Those who write are an OpenAI-compatible server, a language model of transformers on this machine, and a rule.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from monkey.completions_client import KEY_VARIABLE, CompletionsClient, ServerGone, checked_url
from monkey.describe.experts import (
    Expert,
    ExpertSettings,
    Failure,
    Item,
    ModelExpert,
    ModelSettings,
    Spent,
    model_identity,
    one_line,
    setting,
)
from monkey.describe.findings import TEXT, Box, Candidate, Result, Summary, area, overlap
from monkey.describe.prompt import problems_of, prompt_parts, write_complaint, write_prompt

Message = dict[str, str]
"""One turn: {"role": "user" or "assistant", "content": text}."""


@dataclass(frozen=True)
class SummarySettings(ExpertSettings):
    """`retries`: how often a description that breaks a rule is asked for again before it is flagged."""

    most_sentences: int = setting(5, least=1)
    retries: int = setting(1, least=0)


class Writer(Expert):
    """Asks for descriptions by `answer`, which a subclass has."""

    needs_image = False

    @classmethod
    def identity(cls, settings: Any) -> Mapping[str, Any]:
        return {"prompt": prompt_parts()}

    def answer(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        """Return the next turn of each conversation."""
        raise NotImplementedError

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        conversations = [[_message("user", self._question(item))] for item in items]
        results: list[Any] = [None] * len(items)
        asked = list(range(len(items)))
        for attempt in range(1 + self.settings.retries):
            answers = self.answer([items[place] for place in asked], [conversations[place] for place in asked])
            for place, answer in zip(asked, answers, strict=True):
                results[place] = self._judge(results[place], answer, attempt + 1, conversations[place])
            asked = [place for place in asked if isinstance(results[place], Summary) and results[place].problems]
            stop = next((result for result in results if isinstance(result, Failure) and result.stops), None)
            if stop is not None:
                # Those still to be asked again are left for the next run, as if they had not been asked.
                return [stop if place in asked else result for place, result in enumerate(results)]
            if not asked:
                break
        return results

    def _question(self, item: Item) -> str:
        return write_prompt(item.results["caption"], item.results["filters"], self.settings.most_sentences)

    def _judge(
        self, earlier: Summary | None, answer: str | Failure, attempt: int, conversation: list[Message]
    ) -> Summary | Failure:
        """Return the better of two attempts, the later one of equals; a complaint goes into the conversation."""
        if isinstance(answer, Failure):
            return answer if earlier is None or answer.stops else earlier
        text = one_line(answer)
        problems = problems_of(text, self.settings.most_sentences)
        if problems:
            complaint = write_complaint(problems)
            conversation[1:] = [_message("assistant", text), _message("user", complaint)]
        if earlier is not None and len(earlier.problems) < len(problems):
            return Summary(earlier.text, earlier.problems, attempt)
        return Summary(text, problems, attempt)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


# A server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, or a hosted service


@dataclass(frozen=True)
class EndpointSettings(SummarySettings):
    """`model` is the name that the server knows it by; `concurrency` is requests at a time.

    What a busy server refuses is asked again as often as `attempts` says, when the client sees fit; so is an answer
    that is none, after `first_wait` seconds and twice as long each further time. With `prompt_price` and
    `completion_price`, for a million tokens, the manifest has the cost.
    """

    base_url: str = setting("", is_needed=True)
    model: str = setting("", is_needed=True)
    temperature: float = setting(0.0)
    max_tokens: int = setting(300, least=1)
    batch_size: int = setting(32, least=1, changes_result=False)
    concurrency: int = setting(8, least=1, changes_result=False)
    attempts: int = setting(6, least=1, changes_result=False)
    timeout: float = setting(120.0, changes_result=False)
    first_wait: float = setting(0.0, least=0, changes_result=False)
    api_key_variable: str = setting(KEY_VARIABLE, changes_result=False)
    prompt_price: float | None = setting(None, changes_result=False)
    completion_price: float | None = setting(None, changes_result=False)


class Endpoint(Writer):
    """Descriptions by a server. The key comes from an environment variable and is sent to its address only."""

    Settings = EndpointSettings

    def __init__(self, settings: EndpointSettings):
        super().__init__(settings)
        key = os.environ.get(settings.api_key_variable)
        self._client = CompletionsClient(settings.base_url, key, settings.attempts, settings.timeout, called="base_url")

    @classmethod
    def identity(cls, settings: EndpointSettings) -> Mapping[str, Any]:
        # What stands behind a name can change without a sign; the address and the name are all there is to tell.
        checked_url(settings.base_url, "base_url")
        return super().identity(settings)

    def answer(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="endpoint") as pool:
            futures = [pool.submit(self._ask, conversation) for conversation in conversations]
            results = []
            for future in futures:
                if future.cancelled():
                    results.append(Failure("it was not asked any more", stops=True))
                    continue
                answer, spent = future.result()
                self.spent.add(**vars(spent))
                results.append(answer)
                if isinstance(answer, Failure) and answer.stops:
                    # What is on its way is still taken, what waits is not sent to be refused as well.
                    for waiting in futures:
                        waiting.cancel()
            return results

    def _ask(self, conversation: list[Message]) -> tuple[str | Failure, Spent]:
        """Return the server's answer, and what was spent on it and on answers that were none."""
        settings, spent, problem = self.settings, Spent(), ""
        length = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        for attempt in range(settings.attempts):
            if attempt:
                time.sleep(settings.first_wait * 2 ** (attempt - 1))
            try:
                status, reply = self._client.complete({"model": settings.model, "messages": conversation, **length})
            except TimeoutError:
                return Failure(f"no answer within {settings.timeout:g} seconds, {settings.attempts} times"), spent
            except ServerGone as error:
                return Failure(str(error), stops=True), spent
            spent.requests += 1
            if status != 200:
                return Failure(f"{self._client.base_url} answers {status}: {self._client.said(reply)}"), spent
            try:
                completion = json.loads(reply)
                _count_tokens(completion, spent)
                text = completion["choices"][0]["message"]["content"]
                if not isinstance(text, str) or not text.strip():
                    raise ValueError("its text is empty")
                return text, spent
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                problem = f"{type(error).__name__}: {error}"
        return Failure(f"{settings.attempts} answers were no chat completions ({problem})"), spent


def _count_tokens(completion: Any, spent: Spent) -> None:
    """Add the tokens that the server says it used; a server need not say it."""
    usage = completion.get("usage") if isinstance(completion, dict) else None
    if isinstance(usage, dict):
        counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        spent.add(0, *(count if isinstance(count, int) else 0 for count in counts))


# A language model of transformers

PLAIN_END = "\n\nDescription:"
"""What a model without a chat template goes on from."""


@dataclass(frozen=True)
class LocalSettings(SummarySettings, ModelSettings):
    model: str = setting("Qwen/Qwen2.5-7B-Instruct", is_needed=True)
    max_new_tokens: int = setting(300, least=1)


class LocalModel(Writer, ModelExpert):
    """Greedy answers, a batch at a time."""

    Settings = LocalSettings
    opened_as: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, settings: LocalSettings):
        super().__init__(settings)
        self.processor.padding_side = "left"
        if self.processor.pad_token is None:
            self.processor.pad_token = self.processor.eos_token

    @classmethod
    def identity(cls, settings: LocalSettings) -> Mapping[str, Any]:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        families = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ())
        return {
            **model_identity(settings, families, "summarising"),
            "prompt": prompt_parts(),
            "plain_end": PLAIN_END,
        }

    def answer(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        import torch

        prompts = [self.write(conversation) for conversation in conversations]
        # A template writes the tokens of its beginning itself.
        is_templated = self.processor.chat_template is not None
        inputs = self.processor(prompts, padding=True, add_special_tokens=not is_templated, return_tensors="pt")
        inputs = inputs.to(self.settings.device_name)
        length, new = inputs["input_ids"].shape[1], self.settings.max_new_tokens
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room is not None and length + new > room:
            if len(items) > 1:  # of a batch only the long ones are too long
                return [self.answer([item], [one])[0] for item, one in zip(items, conversations, strict=True)]
            sentence = f"its question has {length} tokens, and with {new} new ones that is more than the model's {room}"
            return [Failure(sentence)]
        ends = {self.processor.pad_token_id, self.processor.eos_token_id}
        with torch.inference_mode():
            ids = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=self.processor.pad_token_id,
            )[:, length:]
        num_new = sum(one not in ends for row in ids.tolist() for one in row)
        self.spent.add(len(items), int(inputs["attention_mask"].sum()), num_new)
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def write(self, conversation: Sequence[Message]) -> str:
        """Return a conversation as the model was taught to read one; words of images cannot be control tokens."""
        inert = [{**message, "content": self._without_tokens(message["content"])} for message in conversation]
        if self.processor.chat_template is not None:
            return self.processor.apply_chat_template(inert, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in inert) + PLAIN_END

    def _without_tokens(self, text: str) -> str:
        for token in sorted(self.processor.all_special_tokens, key=len, reverse=True):
            text = text.replace(token, " ")
        return text


# A rule


@dataclass(frozen=True)
class RuleSettings(SummarySettings):
    """`most_objects` and `most_words` bound the lists."""

    retries: int = setting(0, least=0)
    most_objects: int = setting(6, least=0)
    most_words: int = setting(6, least=0)


class Rules(Writer):
    """The caption, the main objects with their places, one relation, and the words that can be read: no model is asked.

    Notes with digits are left out, as the rules of a description forbid them.
    """

    Settings = RuleSettings

    def answer(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        return [self._write(item) for item in items]

    def _write(self, item: Item) -> str:
        kept = item.results["filters"].kept
        objects = _choose_objects([one for one in kept if one.source != TEXT], self.settings.most_objects)
        caption = re.sub(r"^(?:An?|The)\b", lambda article: article[0].lower(), item.results["caption"].text)
        said = [f"The picture shows {caption.rstrip('.')}."]
        if objects:
            listed = _listed([f"{one.text} {_place(one.box)}" for one in objects])
            said.append(f"{_capital(listed)} can be seen.")
        said += _relate(objects)
        said += _tell_texts([one.text for one in kept if one.source == TEXT], self.settings.most_words)
        return " ".join(said)


_DIGIT = re.compile(r"\d")
_SAME, _FILLS = 0.8, 0.6
"""Overlap from which two notes are on one object, and share of the image from which an object fills it."""

_PLACES = (
    ("at the upper left", "at the top", "at the upper right"),
    ("at the left", "in the middle", "at the right"),
    ("at the lower left", "at the bottom", "at the lower right"),
)


def _choose_objects(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """Return the largest objects, one of each place, in reading order."""
    chosen: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: -area(one.box)):
        told = not _DIGIT.search(one.text) and one.text not in ("a number", "a word")
        if told and all(overlap(one.box, other.box) < _SAME for other in chosen):
            chosen.append(one)
    return sorted(chosen[:most], key=lambda one: (round(one.box[1], 1), one.box[0]))


def _place(box: Box) -> str:
    if area(box) > _FILLS:
        return "that fills most of it"
    across, down = (min(2, int((box[side] + box[side + 2]) / 2 * 3)) for side in (0, 1))
    return _PLACES[down][across]


def _relate(objects: Sequence[Candidate]) -> list[str]:
    """Say where the first object is, seen from the last, where that is plain."""
    if len(objects) < 2 or objects[0].text == objects[-1].text:
        return []
    (first, one), (last, other) = (
        (re.sub(r"^(?:an?|the)\s+", "the ", found.text, flags=re.IGNORECASE), found.box)
        for found in (objects[0], objects[-1])
    )
    if one[2] <= other[0]:
        return [f"{_capital(first)} is to the left of {last}."]
    if one[3] <= other[1]:
        return [f"{_capital(first)} is above {last}."]
    is_inside = one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2] and one[3] >= other[3]
    return [f"{_capital(last)} lies inside {first}."] if is_inside else []


def _tell_texts(texts: Sequence[str], most: int) -> list[str]:
    """Tell the words that can be read, each once; numbers are mentioned only."""
    words = [text for text in dict.fromkeys(texts) if len(text) > 1 and not _DIGIT.search(text)][:most]
    number = sum(1 for text in texts if _DIGIT.search(text))
    said = []
    if words:
        quoted = _listed([f"“{word}”" for word in words])
        said.append(f"The {'words' if len(words) > 1 else 'word'} {quoted} can be read.")
    if number:
        said.append("A number is written there." if number == 1 else "Several numbers are written there.")
    return said


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _listed(entries: Sequence[str]) -> str:
    return entries[0] if len(entries) == 1 else f"{', '.join(entries[:-1])} and {entries[-1]}"
