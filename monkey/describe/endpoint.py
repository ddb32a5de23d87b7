"""Descriptions by a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, or a hosted service.

The key comes from an environment variable and is sent to the given address only. What a busy server refuses is asked
again after a while, as often as `attempts` says, and so is an answer that is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from monkey.completions_client import KEY_VARIABLE, CompletionsClient, ServerGone, checked_url
from monkey.describe.expert import Failure, Item, Spent, how
from monkey.describe.prompting import prompt_parts
from monkey.describe.summarising import Message, Summariser, SummarySettings


@dataclass(frozen=True)
class EndpointSettings(SummarySettings):
    """`model` is the name that the server knows it by; `concurrency` is requests at a time.

    With `prompt_price` and `completion_price`, for a million tokens, the manifest has the cost. `first_wait` is read
    from older configurations and has no effect: the client chooses how long it waits before it asks again.
    """

    base_url: str = ""
    model: str = ""
    temperature: float = 0.0
    max_tokens: int = 300
    batch_size: int = how(32)
    concurrency: int = how(8)
    attempts: int = how(6)
    timeout: float = how(120.0)
    first_wait: float | None = how(None)
    api_key_variable: str = how(KEY_VARIABLE)
    prompt_price: float | None = how(None)
    completion_price: float | None = how(None)

    def check(self) -> None:
        super().check()
        for name in ("base_url", "model"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing")
        checked_url(self.base_url, "base_url")
        for name in ("concurrency", "attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and 1 or more is needed")


class Endpoint(Summariser):
    Settings = EndpointSettings

    def __init__(self, settings: EndpointSettings):
        super().__init__(settings)
        key = os.environ.get(settings.api_key_variable)
        self._client = CompletionsClient(settings.base_url, key, settings.attempts, settings.timeout, called="base_url")

    @classmethod
    def identity(cls, settings: EndpointSettings) -> Mapping[str, Any]:
        # What stands behind a name can change without a sign; the address and the name are all there is to tell.
        return {"prompt": prompt_parts()}

    def answers(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="endpoint") as pool:
            futures = [pool.submit(self._answer, conversation) for conversation in conversations]
            results = []
            for future in futures:
                if future.cancelled():
                    results.append(Failure("it was not asked any more", stops=True))
                    continue
                answer, spent = future.result()
                self.spent.add(spent.requests, spent.prompt_tokens, spent.completion_tokens)
                results.append(answer)
                if isinstance(answer, Failure) and answer.stops:
                    # What is on its way is still taken, what waits is not sent to be refused as well.
                    for waiting in futures:
                        waiting.cancel()
            return results

    def _answer(self, conversation: list[Message]) -> tuple[str | Failure, Spent]:
        """The server's answer, and what was spent on it and on answers that were none."""
        spent = Spent()
        body = {
            "model": self.settings.model,
            "messages": conversation,
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        problem = ""
        for _ in range(self.settings.attempts):
            try:
                status, reply = self._client.complete(body)
            except TimeoutError:
                return Failure(
                    f"no answer within {self.settings.timeout:g} seconds, {self.settings.attempts} times"
                ), spent
            except ServerGone as error:
                return Failure(str(error), stops=True), spent
            spent.requests += 1
            if status != 200:
                return Failure(f"{self._client.base_url} answers {status}: {self._client.said(reply)}"), spent
            try:
                completion = json.loads(reply)
                _count(completion, spent)
                text = completion["choices"][0]["message"]["content"]
                if not isinstance(text, str) or not text.strip():
                    raise ValueError("its text is empty")
                return text, spent
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                problem = f"{type(error).__name__}: {error}"
        return Failure(f"{self.settings.attempts} answers were no chat completions ({problem})"), spent


def _count(completion: Any, spent: Spent) -> None:
    """Add the tokens that the server says it used; a server need not say it."""
    usage = completion.get("usage") if isinstance(completion, dict) else None
    if isinstance(usage, dict):
        prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
        spent.add(0, prompt if isinstance(prompt, int) else 0, answer if isinstance(answer, int) else 0)
