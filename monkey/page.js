"use strict";
// What the pages of runs share. Text of a run reaches a page through textContent only, never as markup.
const find = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// A list shown a page at a time in #list, with #back, #next, #pages and #nothing; returns what shows other entries.
function pagedList(size, noun, card, top) {
  let entries = [];
  let page = 0;

  function show() {
    const count = Math.max(1, Math.ceil(entries.length / size));
    page = Math.min(Math.max(page, 0), count - 1);
    find("list").replaceChildren(...entries.slice(page * size, (page + 1) * size).map(card));
    find("nothing").hidden = entries.length > 0;
    const counted = entries.length + " " + noun + (entries.length === 1 ? "" : "s");
    find("pages").textContent = counted + ", page " + (page + 1) + " of " + count;
    find("back").disabled = page === 0;
    find("next").disabled = page === count - 1;
  }

  function turn(step) {
    page += step;
    show();
    find(top).scrollIntoView();
  }

  find("back").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  return (others) => {
    entries = others;
    page = 0;
    show();
  };
}

find("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
