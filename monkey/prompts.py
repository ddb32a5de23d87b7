"""Every prompt string, to the byte, with its source.

`<img></img>` is an image's place. Spaces matter: the authors of the published evaluation script report 61.2 and
68.37 on VizWiz for two prompts that differ in one capital letter and one trailing space. Training used the form that
ends in `Answer: ` with a space; the released evaluation script asks without it.

A constant with `{question}` is filled by `str.format`; braces in the question itself are left alone.
"""

from __future__ import annotations

END_OF_TEXT, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
BOX_MARKERS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""Control tokens of Qwen-VL; of its others `monkey.tokenization` has the list."""

IMAGE_PLACE = IMAGE_START + IMAGE_END
"""An image's placeholder in trusted text."""

VQA_AS_TRAINED = "<img></img> {question} Answer: "
"""Question answering as trained (Monkey's paper, and the comment in its evaluate_vqa.py); ends in a space."""

REGION_QUESTION = "Where is <ref>{question}</ref>?"
"""Asks for the box of a text or thing; `<ref>` and `</ref>` are Qwen-VL's control tokens."""

REGION_AS_TRAINED = VQA_AS_TRAINED.replace("{question}", REGION_QUESTION)
"""The box of a text, in the form of the other questions."""

REGION_TEXT_QUESTION = "What is written in <box>{question}</box>?"
"""Asks for the text in a box, whose corners stand where a question does: `(x1,y1),(x2,y2)`."""

REGION_TEXT_AS_TRAINED = VQA_AS_TRAINED.replace("{question}", REGION_TEXT_QUESTION)
"""The text in a box, in the form of the other questions."""

VQA_PUBLISHED = "<img></img>{question} Answer:"
"""Question answering as the released evaluate_vqa.py of Monkey asks it."""

QUESTION_ALONE = "<img></img> {question}"
"""A question without anything behind it, as people ask; some of the drawn pages ask so in training."""

VIZWIZ_PUBLISHED = (
    '<img></img> {question} When the provided information is insufficient, respond with "Unanswerable". Answer:'
)
"""VizWiz as the released evaluate_vqa.py of Monkey asks it; its comment gives 61.2, the paper's number."""

VIZWIZ_AS_TRAINED = (
    '<img></img> {question} When the provided information is insufficient, respond with "unanswerable". Answer: '
)
"""VizWiz in the variant of that script's comment, which gives 68.37 for it; ends in a space."""

CAPTION_AS_TRAINED = "<img></img> Generate the caption in English: "
"""Short caption as trained (Monkey's paper); ends in a space."""

DETAILED_CAPTION_AS_TRAINED = "<img></img> Generate the detailed caption in English: "
"""Long description as trained (Monkey's paper); ends in a space."""

DESCRIPTION_PROMPTS = (
    "Generate the detailed caption in English.",
    "Explain the visual content of the image in great detail.",
    "Analyze the image in a comprehensive and detailed manner.",
    "Describe the image in as much detail as possible in English without duplicating it.",
    "Describe the image in as much detail as possible in English, including as many elements from the image as "
    "possible, but without repetition.",
)
"""The five that Monkey's README offers for descriptions in its demo. They stand where a question stands in
`VQA_AS_TRAINED`: the README's example is `query = "Generate the detailed caption in English. Answer: "`."""

CAPTION_QWEN_VL = "<img></img>Describe the image in English:"
"""Short caption as Qwen-VL's evaluation asks it."""

SCIENCEQA_QWEN_VL = "<img></img>{question}\nAnswer:"
"""ScienceQA as Qwen-VL's evaluate_multiple_choice.py asks it; the question is that script's block of
"Context: …\\nQuestion: …\\nOptions: A. …"."""

CHAT_SYSTEM = "You are a helpful assistant."
"""System message of Qwen's chat models when a conversation has none of its own."""

CHAT_PICTURE_LABEL = "Picture {number}: "
"""What Qwen-VL's chat writes before an image; the image's place and a line break follow. Numbers start at 1."""


AS_TRAINED, PUBLISHED = "as-trained", "published"

FORMS = {
    "vqa": {AS_TRAINED: VQA_AS_TRAINED, PUBLISHED: VQA_PUBLISHED},
    "vizwiz": {AS_TRAINED: VIZWIZ_AS_TRAINED, PUBLISHED: VIZWIZ_PUBLISHED},
    "caption": {AS_TRAINED: CAPTION_AS_TRAINED, PUBLISHED: CAPTION_QWEN_VL},
    "scienceqa": {AS_TRAINED: VQA_AS_TRAINED, PUBLISHED: SCIENCEQA_QWEN_VL},
    "region": {AS_TRAINED: REGION_AS_TRAINED, PUBLISHED: REGION_AS_TRAINED},
    "region_text": {AS_TRAINED: REGION_TEXT_AS_TRAINED, PUBLISHED: REGION_TEXT_AS_TRAINED},
    "ocrbench": {AS_TRAINED: VQA_AS_TRAINED, PUBLISHED: VQA_AS_TRAINED},
}
"""The prompt of an evaluation task, by the name in its row and the choice of `--prompt`."""


def after_image(prompt: str) -> str:
    """The prompt without the image place it begins with, for text that goes in as inert content.

    `processor(images=[image], text=after_image(VQA_AS_TRAINED).format(question=question), inert_text=True)` gives the
    ids of the filled prompt, and the question cannot hold an image place or a control token.

    Raises:
        ValueError: the prompt does not begin with an image place, or holds another.
    """
    if not prompt.startswith(IMAGE_PLACE) or IMAGE_PLACE in prompt[len(IMAGE_PLACE) :]:
        raise ValueError(f"the prompt {prompt!r} does not begin with its only {IMAGE_PLACE}")
    return prompt[len(IMAGE_PLACE) :]


def is_prompt(text: str) -> bool:
    """Whether a text is a prompt of training already, rather than a question to put into one."""
    return text.rstrip().endswith(("Answer:", "English:"))
