"""What the demo says, in English and in Chinese; names in braces are filled in by `say`."""

from __future__ import annotations

ENGLISH = {
    "heading": "# Monkey\nAsk about images, or have them described.",
    "guide_title": "How to use it",
    "guide": (
        "1. **Give it an image.** Drop a file, paste one, take one with the camera, or click an example. Several "
        "images may go with one question.\n"
        "2. **Ask.** Type a question and press Enter, or choose one of those to try. The shorter and more concrete the "
        "question, the better the answer. What the model can do, and which languages it knows, stands at the top where "
        "its makers say so.\n"
        "3. **Ask where something stands.** `Where is <ref>Total</ref>?` is answered with a box, which is drawn on the "
        "image.\n"
        "4. **Go on.** The next question sees the conversation above it, images included. *Retry* answers the last "
        "question once more, *Edit* takes it back into the box, *Stop* ends an answer early, *Clear* deletes the "
        "images and the conversation.\n"
        "5. **Or press *Describe*** for a description of an image. At a temperature above 0 its words are drawn at "
        "random from a seed: the same seed gives the same text, another seed another one. What it is asked with can be "
        "chosen or written under *Settings*.\n"
        "6. **Look inside.** *What the model sees* shows the windows that your image is cut into, and on request where "
        "the model looked for its last answer."
    ),
    "terms_of_weights": "Terms of the weights",
    "caution": (
        "Answers can be wrong, however sure they sound, and can repeat what is offensive in an image or in the "
        "training data: check them before you rely on them, and do not try to make the model produce anything "
        "harmful. Images and questions go to the machine that runs this page; images are deleted there when you clear "
        "the conversation or close the page, after an hour, and when the demo ends."
    ),
    "languages": "Languages: {languages}.",
    "model": "{name}: reads {height}×{width} pixels in {rows}×{columns} windows as {tokens:,} tokens, on {device}",
    "model_of_grids": (
        "{name}: reads each image in up to {most} windows of {side}×{side} pixels, as its shape asks, as {least:,} to "
        "{tokens:,} tokens, on {device}"
    ),
    "opening": "Opening {name} (model {number} of {of}). Questions wait for it.",
    "not_opened": "The model could not be opened: {reason}.",
    "images": "Images for the next question",
    "image": "Image",
    "examples": "Or try one of these",
    "to_try": "Questions to try",
    "conversation_hint": "Add an image and ask about it. Answers appear here.",
    "question": "Question",
    "question_hint": "What does the sign say?",
    "answer": "Answer",
    "ask": "Ask",
    "stop": "Stop",
    "clear": "Clear",
    "retry": "Retry",
    "edit": "Edit",
    "describe": "Describe",
    "settings": "Settings",
    "prompt": "What a description is asked for with",
    "prompt_hint": "Choose one, or write another.",
    "for_answers": "**Answers**",
    "for_descriptions": "**Descriptions**",
    "temperature": "Temperature",
    "temperature_hint": "0 always takes the likeliest word.",
    "top_p": "Top-p",
    "top_p_hint": "Share of probability that words are drawn from.",
    "longest": "Longest answer",
    "longest_hint": "In tokens, a little less than a word each.",
    "seed": "Seed",
    "seed_hint": "A whole number; empty for another text every time.",
    "sees": "What the model sees",
    "sees_hint": "The windows of the last image, and where the model looked for its last answer.",
    "sees_nothing": "Add an image first; then its windows can be shown.",
    "show_views": "Show the windows",
    "show_heat": "Show where it looked",
    "views_of": "{name}, {width}×{height} pixels",
    "views_on_grid": "{name}, {width}×{height} pixels: {rows}×{columns} windows, {tokens:,} tokens",
    "heat_of_queries": "Where the resampler's queries look, window by window",
    "heat_of_answer": "Where the answer looked: {share:.0%} of its attention is on this image",
    "sees_counts": (
        "Each image is stretched to the canvas and cut into {windows} windows of {side}×{side} pixels; {views} views "
        "in all become {tokens:,} tokens. Images: {images}, tokens: {total:,}."
    ),
    "sees_counts_padded": (
        "Each image keeps its ratio, is padded to the canvas and cut into {windows} windows of {side}×{side} pixels; "
        "{views} views in all become {tokens:,} tokens. Images: {images}, tokens: {total:,}."
    ),
    "sees_counts_of_grids": (
        "Each image is put on the windows of {side}×{side} pixels that suit its shape. Images: {images}, windows: "
        "{windows}, tokens: {total:,}."
    ),
    "answer_counts": "{name}: a prompt of {prompt:,} tokens, an answer of {answer}",
    "confidence": ", confidence {confidence:.2f}",
    "no_heat": "There is no answer yet whose attention could be shown. Ask something first.",
    "busy_heat": "Where the model looked could not be computed: {reason}.",
    "no_answer": "(The model gave no answer.)",
    "stopped": "(stopped)",
    "boxes": "The image with the boxes of the answer drawn on it",
    "no_image": "There is no image yet. Add one first.",
    "bad_image": "This image cannot be used: {reason}.",
    "gone_image": "The image is no longer on the server, where images stay for an hour. Add it again.",
    "many_images": "There are {count} images, and up to {limit} can go with one question. Remove some.",
    "no_question": "There is no question yet. Type one first.",
    "no_prompt": "The description prompt is empty. Choose or write one.",
    "long_question": "The question has {length:,} characters, more than the {limit:,} allowed. Shorten it.",
    "nothing_to_repeat": "There is no question yet that could be repeated.",
    "refused": "The model cannot take this: {reason}.",
    "half_character": "The text holds half of a character, which nothing can read. Type it again.",
    "bad_number": "{name} must be a number from {least:,} to {most:,}.",
    "bad_whole_number": "{name} must be a whole number from {least:,} to {most:,}.",
    "reduced": (
        "The memory of the machine did not suffice for the whole conversation, so the last question was asked by "
        "itself, for an answer of up to {limit} tokens."
    ),
    "out_of_memory": (
        "The memory of the machine did not suffice for this answer, even by itself and short. Give fewer images, clear "
        "the conversation, or try again later."
    ),
    "timed_out": "The model took too long and was stopped: {reason}.",
    "closed": "The demo is ending; the model answers no more questions.",
}

CHINESE = {
    "heading": "# Monkey\n就图片提问，或让模型描述图片。",
    "guide_title": "使用说明",
    "guide": (
        "1. **给它一张图片。** 拖入文件、粘贴、用摄像头拍摄，或点击一个示例。一个问题可以带多张图片。\n"
        "2. **提问。** 输入问题后按回车，或点击一个可试的问题。问题越短、越具体，回答越好。"
        "模型能做什么、懂哪些语言，如有说明，写在页面顶部。\n"
        "3. **问某段文字在哪里。** 对 `Where is <ref>Total</ref>?` 的回答是一个框，会画在图片上。\n"
        "4. **继续对话。** 下一个问题能看到上面的对话和图片。“重试”重新回答上一个问题，“编辑”把它放回输入框，"
        "“停止”提前结束回答，“清空”删除图片和对话。\n"
        "5. **或点击“描述”**，得到对图片的描述。温度大于 0 时，用词由随机种子决定：种子相同，文字相同；换一个种子，"
        "就换一段文字。描述所用的提示词可在“设置”里选择或填写。\n"
        "6. **看看内部。** “模型看到了什么”显示图片被切成的窗口，并可按需显示模型给出上一个回答时看了哪里。"
    ),
    "terms_of_weights": "权重的使用条款",
    "caution": (
        "回答听起来再肯定也可能有误，"
        "也可能复述图片或训练数据中的不当内容：采信前请核实，请勿诱导模型生成有害内容。"
        "图片和问题会发送到运行本页面的机器；清空对话或关闭页面时、一小时后以及演示结束时，图片会从该机器上删除。"
    ),
    "languages": "语言：{languages}。",
    "model": "{name}：以 {rows}×{columns} 个窗口读取 {height}×{width} 像素，共 {tokens:,} 个 token，运行于 {device}",
    "model_of_grids": (
        "{name}：按图片形状以最多 {most} 个 {side}×{side} 像素的窗口读取每张图片，共 {least:,} 到 {tokens:,} 个 token，"
        "运行于 {device}"
    ),
    "opening": "正在打开 {name}（第 {number} 个模型，共 {of} 个）。打开之前，问题会排队等待。",
    "not_opened": "模型无法打开：{reason}。",
    "images": "下一个问题的图片",
    "image": "图片",
    "examples": "或试试这些示例",
    "to_try": "可以试试的问题",
    "conversation_hint": "添加一张图片并提问，回答会显示在这里。",
    "question": "问题",
    "question_hint": "招牌上写着什么？",
    "answer": "回答",
    "ask": "提问",
    "stop": "停止",
    "clear": "清空",
    "retry": "重试",
    "edit": "编辑",
    "describe": "描述",
    "settings": "设置",
    "prompt": "用来请求描述的文字",
    "prompt_hint": "选择一个，或自己填写。",
    "for_answers": "**回答**",
    "for_descriptions": "**描述**",
    "temperature": "温度",
    "temperature_hint": "为 0 时总取最可能的词。",
    "top_p": "Top-p",
    "top_p_hint": "只在累计概率达到此值的词中抽取。",
    "longest": "最长回答",
    "longest_hint": "以 token 计，每个 token 略短于一个词。",
    "seed": "随机种子",
    "seed_hint": "整数；留空则每次得到不同的文字。",
    "sees": "模型看到了什么",
    "sees_hint": "最近一张图片的窗口，以及模型给出上一个回答时看了哪里。",
    "sees_nothing": "请先添加图片，然后即可显示它的窗口。",
    "show_views": "显示窗口",
    "show_heat": "显示看了哪里",
    "views_of": "{name}，{width}×{height} 像素",
    "views_on_grid": "{name}，{width}×{height} 像素：{rows}×{columns} 个窗口，{tokens:,} 个 token",
    "heat_of_queries": "重采样器的查询在每个窗口里看哪里",
    "heat_of_answer": "回答看了哪里：其注意力的 {share:.0%} 落在这张图片上",
    "sees_counts": (
        "每张图片拉伸到画布大小，切成 {windows} 个 {side}×{side} 像素的窗口；总共 {views} 个视图变成 "
        "{tokens:,} 个 token。{images} 张图片共 {total:,} 个 token。"
    ),
    "sees_counts_padded": (
        "每张图片保持比例并填充到画布大小，切成 {windows} 个 {side}×{side} 像素的窗口；总共 {views} 个视图变成 "
        "{tokens:,} 个 token。{images} 张图片共 {total:,} 个 token。"
    ),
    "sees_counts_of_grids": (
        "每张图片按形状放到 {side}×{side} 像素的窗口上。{images} 张图片共 {windows} 个窗口、{total:,} 个 token。"
    ),
    "answer_counts": "{name}：提示 {prompt:,} 个 token，回答 {answer} 个 token",
    "confidence": "，置信度 {confidence:.2f}",
    "no_heat": "还没有可以显示注意力的回答，请先提问。",
    "busy_heat": "无法计算模型看了哪里：{reason}。",
    "no_answer": "（模型没有给出回答。）",
    "stopped": "（已停止）",
    "boxes": "画出了回答中各个框的图片",
    "no_image": "还没有图片，请先添加一张。",
    "bad_image": "这张图片无法使用：{reason}。",
    "gone_image": "图片在服务器上只保留一小时，现已删除，请重新添加。",
    "many_images": "共有 {count} 张图片，而一个问题最多带 {limit} 张，请移除一些。",
    "no_question": "还没有问题，请先输入。",
    "no_prompt": "描述提示词为空，请选择或填写一个。",
    "long_question": "问题有 {length:,} 个字符，超过了 {limit:,} 个的上限，请缩短。",
    "nothing_to_repeat": "还没有可以重复的问题。",
    "refused": "模型无法处理：{reason}。",
    "half_character": "文字中有半个字符，无法读取，请重新输入。",
    "bad_number": "{name}须为 {least:,} 到 {most:,} 之间的数。",
    "bad_whole_number": "{name}须为 {least:,} 到 {most:,} 之间的整数。",
    "reduced": "机器内存不足以处理整个对话，因此只单独回答了最后一个问题，回答最长 {limit} 个 token。",
    "out_of_memory": "机器内存不足，即使单独、简短地回答也无法完成。请减少图片、清空对话，或稍后再试。",
    "timed_out": "模型用时过长，已停止：{reason}。",
    "closed": "演示即将结束，模型不再回答问题。",
}

TEXTS = {"en": ENGLISH, "zh": CHINESE}
"""By language, as `gradio.I18n` and the cards of checkpoints name them."""


def language_of(tag: object) -> str:
    """Return the key in `TEXTS` of a browser's language, such as zh-CN; English for all that is not Chinese."""
    return "zh" if str(tag).lower().startswith("zh") else "en"


def say(tag: object, key: str, **blanks: object) -> str:
    """Return a text in a browser's language, with its blanks filled in."""
    return TEXTS[language_of(tag)][key].format(**blanks)
