"""From what the experts saw to one description: ask, check, ask once more where a rule is broken, and flag.

A summariser is an expert that answers conversations; this is what all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monkey.describe.checks import Rules, one_line, problems_of
from monkey.describe.expert import Expert, ExpertSettings, Failure, Item
from monkey.describe.prompting import complaint_of, prompt_of
from monkey.describe.records import Result, Summary

Message = dict[str, str]
"""One turn: {"role": "user" or "assistant", "content": text}."""


@dataclass(frozen=True)
class SummarySettings(ExpertSettings):
    """`retries`: how often a description that breaks a rule is asked for again before it is flagged."""

    most_sentences: int = 5
    retries: int = 1

    def check(self) -> None:
        super().check()
        if self.most_sentences < 1:
            raise ValueError(f"most_sentences is {self.most_sentences}, and 1 or more is needed")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}, and 0 or more is needed")


class Summariser(Expert):
    """Asks for descriptions by `answers`, which a subclass has."""

    Settings = SummarySettings
    looks = False

    def answers(self, items: Sequence[Item], conversations: Sequence[list[Message]]) -> list[str | Failure]:
        """The next turn of each conversation."""
        raise NotImplementedError

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        rules = Rules(self.settings.most_sentences)
        conversations = [
            [
                {
                    "role": "user",
                    "content": prompt_of(item.results["caption"], item.results["filters"], rules.most_sentences),
                }
            ]
            for item in items
        ]
        results: list[Summary | Failure | None] = [None] * len(items)
        asked = list(range(len(items)))
        for attempt in range(1 + self.settings.retries):
            given = self.answers([items[place] for place in asked], [conversations[place] for place in asked])
            for place, answer in zip(asked, given, strict=True):
                if isinstance(answer, Failure):
                    # An earlier attempt's description is better than none.
                    if results[place] is None or answer.stops:
                        results[place] = answer
                    continue
                text = one_line(answer)
                summary = Summary(text, problems_of(text, rules), attempt + 1)
                results[place] = _better(results[place], summary)
                if summary.problems:
                    conversations[place] = [
                        *conversations[place][:1],
                        {"role": "assistant", "content": text},
                        {"role": "user", "content": complaint_of(summary.problems)},
                    ]
            asked = [place for place in asked if isinstance(results[place], Summary) and results[place].problems]
            stop = next((result for result in results if isinstance(result, Failure) and result.stops), None)
            if stop is not None:
                # Those still to be asked again are left for the next run, as if they had not been asked.
                for place in asked:
                    results[place] = stop
                break
            if not asked:
                break
        return results


def _better(earlier: Summary | Failure | None, later: Summary) -> Summary:
    """The one with fewer problems, the later one of equals; how often was asked stays known."""
    if isinstance(earlier, Summary) and len(earlier.problems) < len(later.problems):
        return Summary(earlier.text, earlier.problems, later.attempts)
    return later
