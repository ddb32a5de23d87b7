"""What the demo says, as fields; `english` and `chinese` fill them in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The demo in one language. Names in braces are filled in by `str.format`."""

    code: str
    """Of the language, as HTML and cards have it."""
    heading: str
    """Markdown, as are `guide` and `caution`."""
    guide_title: str
    guide: str
    terms_of_weights: str
    caution: str
    languages: str
    """languages: that a model knows."""
    model: str
    """About an open checkpoint: name, height and width in pixels, rows, columns, tokens, device."""
    opening: str
    """While a model is being opened: name, number, of (how many), percent."""
    not_opened: str

    intake: str
    picture: str
    tray: str
    """Pictures that go along with the next question."""
    examples: str
    to_try: str
    conversation: str
    conversation_hint: str
    question: str
    question_hint: str
    answer: str
    ask: str
    stop: str
    clear: str
    retry: str
    edit: str
    describe: str
    copy: str
    copied: str
    download_json: str
    download_markdown: str

    prompt_title: str
    prompt_choice: str
    """Prompts of the checkpoint's card."""
    prompt: str
    settings: str
    for_answers: str
    for_descriptions: str
    temperature: str
    temperature_hint: str
    top_p: str
    top_p_hint: str
    longest: str
    longest_hint: str
    seed: str
    seed_hint: str

    sees: str
    sees_hint: str
    sees_nothing: str
    show_views: str
    show_heat: str
    views_of: str
    """name, width, height: caption of the views of a picture."""
    heat_of_queries: str
    heat_of_answer: str
    """share: per cent of the answer's attention that goes to the picture."""
    sees_counts: str
    """windows, side, views, tokens, pictures, total: of the pictures of one question."""
    answer_counts: str
    """name, prompt, answer: tokens of the last exchange."""
    answer_confidence: str
    no_heat: str
    busy_heat: str

    no_answer: str
    stopped: str
    """Added to an answer that was stopped."""
    boxes: str
    """What people who cannot see the picture with drawn boxes are told instead."""

    no_picture: str
    bad_picture: str
    gone_picture: str
    many_pictures: str
    no_question: str
    no_prompt: str
    long_question: str
    half_character: str
    nothing_to_repeat: str
    refused: str
    bad_seed: str
    bad_number: str
    reduced: str
    out_of_memory: str
    timed_out: str
    closed: str
