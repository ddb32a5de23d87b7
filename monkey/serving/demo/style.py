"""How the page looks, and what it does in the browser by itself."""

FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the reader's own machine, so that none is fetched."""

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#heading h1 { margin-bottom: 0.1em; }
#language .wrap { flex-wrap: nowrap; justify-content: flex-end; }
#notice .html-container, #model .html-container, #abilities .html-container, #examples .html-container,
#counts .html-container, #terms .html-container { padding: 0; }
#notice .sentence { margin: 0; padding: 0.6em 0.9em; border: 1px solid var(--border-color-primary);
    border-left: 5px solid #d97706; border-radius: 6px; background: var(--block-background-fill);
    color: var(--body-text-color); overflow-wrap: anywhere; }
#model p { margin: 0; font-size: 0.85em; opacity: 0.85; overflow-wrap: anywhere; }
#model progress { width: 100%; height: 6px; accent-color: #6366f1; }
#counts p { margin: 0.2em 0; overflow-wrap: anywhere; }
.conversation .md { white-space: pre-wrap; overflow-wrap: anywhere; }
.conversation img { max-height: 240px; width: auto; border-radius: 6px; }
/* gradio offers to share a picture, which would send it away. */
.conversation .message-buttons, .conversation .icon-button-wrapper { display: none !important; }
.caption { font-size: 0.85em; opacity: 0.85; }
.caption p { margin: 0; }
#tray-area { gap: 4px; }
#tray .grid-wrap { padding: 0; min-height: 0; }
#tray .grid-container { gap: 6px; padding: 2px; }
#tray .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; padding-top: 34px; }
#tray .caption-label { display: none; }
#examples .examples { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 6px; }
#examples button { padding: 0; border: 1px solid var(--border-color-primary); border-radius: 6px; overflow: hidden;
    cursor: pointer; }
#examples button:hover, #examples button:focus-visible { border-color: var(--color-accent); }
#examples img { display: block; width: 100%; height: auto; margin: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px; }
.figures figure { margin: 0; max-width: 640px; }
.figures img { width: 100%; height: auto; border-radius: 6px; }
.figures figcaption { font-size: 0.85em; opacity: 0.85; }
#abilities p { margin: 0; font-size: 0.85em; overflow-wrap: anywhere; }
#terms p, #caution { font-size: 0.85em; opacity: 0.85; }
#terms p { margin: 0; }
footer { display: none !important; }
@media (max-width: 640px) {
    #language .wrap { justify-content: flex-start; }
    #head { flex-wrap: nowrap !important; }
    #head > .column { min-width: 0 !important; }
    #language { min-width: max-content !important; }
    #head, #pictures { gap: 8px; }
    #heading h1 { font-size: 1.4em; margin: 0; }
    #heading p { margin: 0; font-size: 0.85em; }
    #intake { height: 130px !important; }
    #examples .examples { grid-template-columns: none; grid-auto-flow: column; grid-auto-columns: 72px;
        overflow-x: auto; contain: inline-size; }
    .conversation { height: 340px !important; }
    #main { flex-direction: column; flex-wrap: nowrap; }
    #main > .column { display: contents; }
    #to-try .row { flex-wrap: nowrap; overflow-x: auto; contain: inline-size; }
    #to-try button { flex: none; }
    #actions .row { display: grid; grid-template-columns: repeat(3, 1fr); }
    #composer { order: 1; }
    #chats { order: 2; }
    #actions { order: 3; }
    #drawers { order: 4; }
}
"""

HEAD = """
<style>
/* The browser's own parts, scroll bars for one, are dark where the page is. */
html:has(body.dark) { color-scheme: dark; }
@media (max-width: 640px), (pointer: coarse) {
    /* A finger's width. */
    button, textarea, #language label { min-height: 44px !important; min-width: 44px !important; }
    input:not([type=radio], [type=file]) { min-height: 44px !important; }
    .tab-like-container { height: auto !important; }
    .label-wrap { align-items: center; }
    #intake button.icon { padding: 11px !important; box-sizing: border-box; }
    #language label { display: flex; align-items: center; justify-content: center; }
}
@media (max-width: 640px) {
    .gradio-container > main { padding: 8px !important; }
}
</style>
"""
"""Rules that gradio would narrow to less than they are for."""

CHOOSE = """
element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) trigger("select", {index: Number(button.dataset.place)});
});
"""

SHOW_COMPOSER, SHOW_CHATS = (
    f"""() => document.getElementById("{part}").scrollIntoView({{block: "nearest"}})"""
    for part in ("composer", "chats")
)
"""Nothing moves where the part is seen whole."""

LANGUAGE = """(language) => { document.documentElement.lang = language === "zh" ? "zh-CN" : "en"; }"""

AT_LOADING = """
() => {
    // gradio drops the texts of pictures in a conversation; what was said with one tells what it is.
    new MutationObserver(() => {
        for (const image of document.querySelectorAll(".conversation img:not([alt]), .conversation img[alt='']"))
            image.alt = image.closest(".message-row")?.innerText.trim() || "…";
    }).observe(document.body, {childList: true, subtree: true});
    const pass_on = (event, files) => {
        if (!files || files.length < 2) return;
        event.preventDefault();
        event.stopPropagation();
        const several = document.querySelector("#several input[type=file]"), all = new DataTransfer();
        for (const file of files) all.items.add(file);
        several.files = all.files;
        several.dispatchEvent(new Event("change", {bubbles: true}));
    };
    const on_intake = (event) => event.target.closest?.("#intake");
    // Before gradio hears of it.
    document.addEventListener("drop", (event) => on_intake(event) && pass_on(event, event.dataTransfer.files), true);
    document.addEventListener("change", (event) => on_intake(event) && pass_on(event, event.target.files), true);
    document.addEventListener("click", (event) => {
        for (const input of on_intake(event)?.querySelectorAll("input[type=file]") ?? []) input.multiple = true;
    }, true);
}
"""
"""Several files that are dropped on the place for pictures, or chosen for it, go where there is room for all; and
pictures of the conversation get their texts."""

COPY = """
async (text) => {
    try {
        await navigator.clipboard.writeText(text);
    } catch {  // the clipboard is closed to pages without TLS from other machines
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
}
"""

_DOWNLOAD = """
(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "%s"}));
    link.download = "%s";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
"""

DOWNLOAD_JSON = _DOWNLOAD % ("application/json", "conversation.json")
DOWNLOAD_MARKDOWN = _DOWNLOAD % ("text/markdown", "conversation.md")
