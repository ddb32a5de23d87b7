"""The demo in English."""

from monkey.serving.demo.wording import Wording

ENGLISH = Wording(
    code="en",
    heading="# Monkey\nAsk about pictures, or have them described.",
    guide_title="How to use it",
    guide=(
        "1. **Give it a picture.** Drop a file, paste one, take one with the camera, or click an example. Several "
        "pictures may go with one question.\n"
        "2. **Ask.** Type a question and press Enter, or choose one of those to try. The shorter and more concrete the "
        "question, the better the answer. What the model can do, and which languages it knows, stands at the top where "
        "its makers say so.\n"
        "3. **Ask where something stands.** `Where is <ref>Total</ref>?` is answered with a box, which is drawn on the "
        "picture.\n"
        "4. **Go on.** The next question sees the conversation above it, pictures included. *Retry* answers the last "
        "question once more, *Edit* takes it back into the box, *Stop* ends an answer early, *Clear* deletes the "
        "pictures and the conversation.\n"
        "5. **Or press *Describe*** for a description of a picture. At a temperature above 0 its words are drawn at "
        "random from a seed: the same seed gives the same text, another seed another one. What it is asked with can be "
        "chosen and edited under *Description prompt*.\n"
        "6. **Look inside.** *What the model sees* shows the windows that your picture is cut into, and on request "
        "where the model looked for its last answer."
    ),
    terms_of_weights="Terms of the weights",
    caution=(
        "Answers can be "
        "wrong, however sure they sound, and can repeat what is offensive in a picture or in the training data: check "
        "them before you rely on them, and do not try to make the model produce anything harmful. Pictures and "
        "questions go to the machine that runs this page; pictures are deleted there when you clear the conversation "
        "or close the page, after an hour, and when the demo ends."
    ),
    languages="Languages: {languages}.",
    model="{name}: reads {height}×{width} pixels in {rows}×{columns} windows as {tokens} tokens, on {device}",
    opening="Opening {name} (model {number} of {of}): {percent} of its weights are read. Questions wait for it.",
    not_opened="The model could not be opened: {reason}.",
    intake="Drop a picture here",
    picture="Picture",
    tray="Goes along with the next question",
    examples="Or try one of these",
    to_try="Questions to try",
    conversation="Conversation",
    conversation_hint="Add a picture and ask about it. Answers appear here.",
    question="Question",
    question_hint="What does the sign say?",
    answer="Answer",
    ask="Ask",
    stop="Stop",
    clear="Clear",
    retry="Retry",
    edit="Edit",
    describe="Describe",
    copy="Copy",
    copied="The conversation is in the clipboard.",
    download_json="JSON",
    download_markdown="Markdown",
    prompt_title="Description prompt",
    prompt_choice="Prompts that the model knows",
    prompt="What a description is asked for with",
    settings="Settings",
    for_answers="**Answers**",
    for_descriptions="**Descriptions**",
    temperature="Temperature",
    temperature_hint="0 always takes the likeliest word.",
    top_p="Top-p",
    top_p_hint="Share of probability that words are drawn from.",
    longest="Longest answer",
    longest_hint="In tokens, a little less than a word each.",
    seed="Seed",
    seed_hint="A whole number; empty for another text every time.",
    sees="What the model sees",
    sees_hint="The windows of the last picture, and where the model looked for its last answer.",
    sees_nothing="Add a picture first; then its windows can be shown.",
    show_views="Show the windows",
    show_heat="Show where it looked",
    views_of="{name}, {width}×{height} pixels",
    heat_of_queries="Where the resampler's queries look, window by window",
    heat_of_answer="Where the answer looked: {share} of its attention is on this picture",
    sees_counts=(
        "Each picture is stretched to the canvas and cut into {windows} windows of {side}×{side} pixels; {views} views "
        "in all become {tokens} tokens. Pictures: {pictures}, tokens: {total}."
    ),
    answer_counts="{name}: a prompt of {prompt} tokens, an answer of {answer}",
    answer_confidence="confidence {confidence}",
    no_heat="There is no answer yet whose attention could be shown. Ask something first.",
    busy_heat="Where the model looked could not be computed: {reason}.",
    no_answer="(The model gave no answer.)",
    stopped="(stopped)",
    boxes="The picture with the boxes of the answer drawn on it",
    no_picture="There is no picture yet. Add one first.",
    bad_picture="This picture cannot be used: {reason}.",
    gone_picture="The picture is no longer on the server, where pictures stay for an hour. Add it again.",
    many_pictures="There are {count} pictures, and up to {limit} can go with one question. Remove some.",
    no_question="There is no question yet. Type one first.",
    no_prompt="The description prompt is empty. Choose or write one.",
    long_question="The question has {length} characters, more than the {limit} allowed. Shorten it.",
    half_character="The text holds half of a character, which nothing can read. Type it again.",
    nothing_to_repeat="There is no question yet that could be repeated.",
    refused="The model cannot take this: {reason}.",
    bad_seed="The seed must be a whole number from 0 to {limit}, or empty.",
    bad_number="{name} must be a number from {least} to {most}.",
    reduced=(
        "The memory of the machine did not suffice for the whole conversation, so the last question was asked by "
        "itself, for an answer of up to {limit} tokens."
    ),
    out_of_memory=(
        "The memory of the machine did not suffice for this answer, even by itself and short. Give fewer pictures, "
        "clear the conversation, or try again later."
    ),
    timed_out="The model took too long and was stopped: {reason}.",
    closed="The demo is ending; the model answers no more questions.",
)
