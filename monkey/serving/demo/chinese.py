"""The demo in Chinese."""

from monkey.serving.demo.wording import Wording

CHINESE = Wording(
    code="zh",
    heading="# Monkey\n就图片提问，或让模型描述图片。",
    guide_title="使用说明",
    guide=(
        "1. **给它一张图片。** 拖入文件、粘贴、用摄像头拍摄，或点击一个示例。一个问题可以带多张图片。\n"
        "2. **提问。** 输入问题后按回车，或点击一个可试的问题。问题越短、越具体，回答越好。"
        "模型能做什么、懂哪些语言，如有说明，写在页面顶部。\n"
        "3. **问某段文字在哪里。** 对 `Where is <ref>Total</ref>?` 的回答是一个框，会画在图片上。\n"
        "4. **继续对话。** 下一个问题能看到上面的对话和图片。“重试”重新回答上一个问题，“编辑”把它放回输入框，"
        "“停止”提前结束回答，“清空”删除图片和对话。\n"
        "5. **或点击“描述”**，得到对图片的描述。温度大于 0 时，用词由随机种子决定：种子相同，文字相同；换一个种子，"
        "就换一段文字。描述所用的提示词可在“描述提示词”里选择和修改。\n"
        "6. **看看内部。** “模型看到了什么”显示图片被切成的窗口，并可按需显示模型给出上一个回答时看了哪里。"
    ),
    terms_of_weights="权重的使用条款",
    caution=(
        "回答听起来再肯定也可能有误，"
        "也可能复述图片或训练数据中的不当内容：采信前请核实，请勿诱导模型生成有害内容。"
        "图片和问题会发送到运行本页面的机器；清空对话或关闭页面时、一小时后以及演示结束时，图片会从该机器上删除。"
    ),
    languages="语言：{languages}。",
    model="{name}：以 {rows}×{columns} 个窗口读取 {height}×{width} 像素，共 {tokens} 个 token，运行于 {device}",
    opening="正在打开 {name}（第 {number} 个模型，共 {of} 个）：权重已读取 {percent}。打开之前，问题会排队等待。",
    not_opened="模型无法打开：{reason}。",
    intake="把图片拖到这里",
    picture="图片",
    tray="将随下一个问题一起发送",
    examples="或试试这些示例",
    to_try="可以试试的问题",
    conversation="对话",
    conversation_hint="添加一张图片并提问，回答会显示在这里。",
    question="问题",
    question_hint="招牌上写着什么？",
    answer="回答",
    ask="提问",
    stop="停止",
    clear="清空",
    retry="重试",
    edit="编辑",
    describe="描述",
    copy="复制",
    copied="对话已复制到剪贴板。",
    download_json="JSON",
    download_markdown="Markdown",
    prompt_title="描述提示词",
    prompt_choice="模型熟悉的提示词",
    prompt="用来请求描述的文字",
    settings="设置",
    for_answers="**回答**",
    for_descriptions="**描述**",
    temperature="温度",
    temperature_hint="为 0 时总取最可能的词。",
    top_p="Top-p",
    top_p_hint="只在累计概率达到此值的词中抽取。",
    longest="最长回答",
    longest_hint="以 token 计，每个 token 略短于一个词。",
    seed="随机种子",
    seed_hint="整数；留空则每次得到不同的文字。",
    sees="模型看到了什么",
    sees_hint="最近一张图片的窗口，以及模型给出上一个回答时看了哪里。",
    sees_nothing="请先添加图片，然后即可显示它的窗口。",
    show_views="显示窗口",
    show_heat="显示看了哪里",
    views_of="{name}，{width}×{height} 像素",
    heat_of_queries="重采样器的查询在每个窗口里看哪里",
    heat_of_answer="回答看了哪里：其注意力的 {share} 落在这张图片上",
    sees_counts=(
        "每张图片拉伸到画布大小，切成 {windows} 个 {side}×{side} 像素的窗口；总共 {views} 个视图变成 "
        "{tokens} 个 token。{pictures} 张图片共 {total} 个 token。"
    ),
    answer_counts="{name}：提示 {prompt} 个 token，回答 {answer} 个 token",
    answer_confidence="置信度 {confidence}",
    no_heat="还没有可以显示注意力的回答，请先提问。",
    busy_heat="无法计算模型看了哪里：{reason}。",
    no_answer="（模型没有给出回答。）",
    stopped="（已停止）",
    boxes="画出了回答中各个框的图片",
    no_picture="还没有图片，请先添加一张。",
    bad_picture="这张图片无法使用：{reason}。",
    gone_picture="图片在服务器上只保留一小时，现已删除，请重新添加。",
    many_pictures="共有 {count} 张图片，而一个问题最多带 {limit} 张，请移除一些。",
    no_question="还没有问题，请先输入。",
    no_prompt="描述提示词为空，请选择或填写一个。",
    long_question="问题有 {length} 个字符，超过了 {limit} 个的上限，请缩短。",
    half_character="文字中有半个字符，无法读取，请重新输入。",
    nothing_to_repeat="还没有可以重复的问题。",
    refused="模型无法处理：{reason}。",
    bad_seed="随机种子须为 0 到 {limit} 的整数，或留空。",
    bad_number="{name}须为 {least} 到 {most} 之间的数。",
    reduced="机器内存不足以处理整个对话，因此只单独回答了最后一个问题，回答最长 {limit} 个 token。",
    out_of_memory="机器内存不足，即使单独、简短地回答也无法完成。请减少图片、清空对话，或稍后再试。",
    timed_out="模型用时过长，已停止：{reason}。",
    closed="演示即将结束，模型不再回答问题。",
)
