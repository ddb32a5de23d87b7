"""Descriptions by a language model of transformers on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monkey.describe.expert import Failure, Item
from monkey.describe.prompting import prompt_parts
from monkey.describe.summarising import Message, Summariser, SummarySettings
from monkey.describe.weights import ModelSettings, device_of, model_identity, open_model

PLAIN_END = "\n\nDescription:"
"""What a model without a chat template goes on from."""


@dataclass(frozen=True)
class LocalSettings(SummarySettings, ModelSettings):
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    max_new_tokens: int = 300

    def check(self) -> None:
        SummarySettings.check(self)
        ModelSettings.check(self)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, and 1 or more is needed")


class LocalModel(Summariser):
    """Greedy answers, a batch at a time."""

    Settings = LocalSettings

    def __init__(self, settings: LocalSettings):
        super().__init__(settings)
        self._model, self._tokenizer = open_model("AutoModelForCausalLM", settings)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    @classmethod
    def identity(cls, settings: LocalSettings) -> Mapping[str, Any]:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        kinds = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ())
        return {**model_identity(settings, kinds, "summarising"), "prompt": prompt_parts(), "plain_end": PLAIN_END}

    def answers(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        import torch

        prompts = [self._prompt(conversation) for conversation in conversations]
        # A template writes the tokens of its beginning itself.
        templated = self._tokenizer.chat_template is not None
        inputs = self._tokenizer(prompts, padding=True, add_special_tokens=not templated, return_tensors="pt")
        inputs = inputs.to(device_of(self.settings))
        length = inputs["input_ids"].shape[1]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and length + self.settings.max_new_tokens > room:
            new = self.settings.max_new_tokens
            sentence = f"its question has {length} tokens, and with {new} new ones that is more than the model's {room}"
            if len(items) == 1:
                return [Failure(sentence)]
            # Only the long ones of a batch are too long.
            return [self.answers([item], [one])[0] for item, one in zip(items, conversations, strict=True)]
        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self.settings.max_new_tokens,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )[:, length:]
        ended = {self._tokenizer.pad_token_id, self._tokenizer.eos_token_id}
        new = sum(1 for row in ids.tolist() for one in row if one not in ended)
        self.spent.add(len(items), int(inputs["attention_mask"].sum()), new)
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _prompt(self, conversation: Sequence[Message]) -> str:
        """The conversation as the model was taught to read one; words of the pictures cannot be control tokens."""
        inert = [{**message, "content": self._inert(message["content"])} for message in conversation]
        if self._tokenizer.chat_template is not None:
            return self._tokenizer.apply_chat_template(inert, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in inert) + PLAIN_END

    def _inert(self, text: str) -> str:
        for token in sorted(self._tokenizer.all_special_tokens, key=len, reverse=True):
            text = text.replace(token, " ")
        return text
