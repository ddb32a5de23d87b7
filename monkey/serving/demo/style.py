"""How the page looks, and what it does in the browser by itself."""

FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the reader's own machine, so that none is fetched."""

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#heading h1 { margin-bottom: 0.1em; }
#language .wrap { flex-wrap: nowrap; justify-content: flex-end; }
#notice .html-container, #model .html-container, #counts .html-container { padding: 0; }
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
#tray .grid-wrap, #examples .grid-wrap { padding: 0; min-height: 0; }
#tray .grid-container, #examples .grid-container { gap: 6px; padding: 2px; }
#examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; }
#tray .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; padding-top: 34px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px; }
.figures figure { margin: 0; max-width: 640px; }
.figures img { width: 100%; height: auto; border-radius: 6px; }
.figures figcaption { font-size: 0.85em; opacity: 0.85; }
#terms { font-size: 0.85em; opacity: 0.85; }
footer { display: none !important; }
@media (max-width: 640px) {
    .gradio-container { padding: 8px !important; }
    #language .wrap { justify-content: flex-start; }
    #intake { height: 150px !important; }
    .conversation { height: 340px !important; }
}
"""

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
