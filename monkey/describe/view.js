// The browser of images.
(() => {
  const data = JSON.parse(find("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement;
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);

  function drawing(tag, className, attributes) {
    const made = document.createElementNS(SVG, tag);
    if (className) made.setAttribute("class", className);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    return made;
  }

  // "WIDTHxHEIGHT:" and the deflated bits of the rows, as findings.py writes them.
  async function cellsOf(mask) {
    const [size, packed] = mask.split(":");
    const [width, height] = size.split("x").map(Number);
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bits = new Uint8Array(await new Response(inflated).arrayBuffer());
    const inside = (x, y) => {
      if (x < 0 || y < 0 || x >= width || y >= height) return false;
      const place = y * width + x;
      return Boolean((bits[place >> 3] >> (7 - (place & 7))) & 1);
    };
    return { width, height, inside };
  }

  // Runs of cells as an area without lines of its own, and the edges between inside and outside as lines.
  function outlineOf({ width, height, inside }) {
    const edges = [];
    const filled = [];
    for (let y = 0; y <= height; y++) {
      for (let x = 0, start = -1, from = -1; x <= width; x++) {
        const edge = x < width && inside(x, y) !== inside(x, y - 1);
        if (edge && start < 0) start = x;
        if (!edge && start >= 0) {
          edges.push("M" + start + " " + y + "H" + x);
          start = -1;
        }
        const full = y < height && inside(x, y);
        if (full && from < 0) from = x;
        if (!full && from >= 0) {
          filled.push("M" + from + " " + y + "H" + x + "V" + (y + 1) + "H" + from + "Z");
          from = -1;
        }
      }
    }
    for (let x = 0; x <= width; x++) {
      for (let y = 0, start = -1; y <= height; y++) {
        const edge = y < height && inside(x, y) !== inside(x - 1, y);
        if (edge && start < 0) start = y;
        if (!edge && start >= 0) {
          edges.push("M" + x + " " + start + "V" + y);
          start = -1;
        }
      }
    }
    return { edges: edges.join(""), filled: filled.join("") };
  }

  async function addMask(group, candidate) {
    if (!candidate.mask || typeof DecompressionStream === "undefined") return;
    const cells = await cellsOf(candidate.mask);
    const { edges, filled } = outlineOf(cells);
    const scaled = drawing("g", "outline", { transform: "scale(" + 1 / cells.width + " " + 1 / cells.height + ")" });
    scaled.append(
      drawing("path", "inside segment", { d: filled }),
      drawing("path", "place halo", { d: edges }),
      drawing("path", "place outline segment", { d: edges }),
    );
    group.prepend(scaled);
  }

  function markOf(candidate) {
    const [left, top, right, bottom] = candidate.box;
    const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
    const dropped = candidate.dropped ? " is-dropped" : "";
    const group = drawing("g", "mark-of " + candidate.source + dropped);
    const box = drawing("rect", "place box " + candidate.source + (candidate.dropped ? " dropped" : ""), place);
    const title = drawing("title");
    title.textContent = candidate.text;
    box.append(title);
    group.append(drawing("rect", "place halo", place), box);
    addMask(group, candidate);
    return group;
  }

  function frameOf(entry, marks) {
    const frame = element("div", "frame picture");
    if (!entry.picture) {
      frame.append(element("div", "none", "no image in this page: " + entry.no_picture));
      return frame;
    }
    const image = element("img");
    [image.width, image.height] = entry.size;
    image.src = entry.picture;
    image.alt = entry.caption || entry.file;
    const over = drawing("svg", "", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    // Small ones on top, so that each can be pointed at.
    const order = entry.candidates.map((_, place) => place);
    order.sort((one, other) => area(entry.candidates[other].box) - area(entry.candidates[one].box));
    over.append(...order.map((place) => marks[place]));
    frame.append(image, over);
    return frame;
  }

  function rowOf(candidate, number, mark) {
    const row = element("tr", candidate.dropped ? "is-dropped" : "");
    const name = element("td", candidate.source === "text" ? "text-source" : candidate.source);
    const button = element("button", "", candidate.source + " " + number);
    button.type = "button";
    button.title = "keep it drawn";
    button.setAttribute("aria-pressed", "false");
    name.append(button);
    const said = element("td", "said-there");
    const words = element("span", "", candidate.text || "(empty)");
    words.dir = "auto";
    said.append(words);
    if (candidate.because) said.append(element("div", "why", "filtered: " + candidate.because));
    row.append(name, said, element("td", "", candidate.score === null ? "–" : candidate.score.toFixed(2)));
    let pinned = false;
    const light = (on) => {
      for (const each of [row, mark]) each.classList.toggle("lit", on || pinned);
    };
    for (const each of [row, mark]) {
      each.addEventListener("mouseenter", () => light(true));
      each.addEventListener("mouseleave", () => light(false));
    }
    button.addEventListener("click", () => {
      pinned = !pinned;
      button.setAttribute("aria-pressed", String(pinned));
      light(false);
    });
    return row;
  }

  function tableOf(entry, marks) {
    const box = element("div", "candidates");
    const table = element("table");
    const body = element("tbody");
    const counted = {};
    entry.candidates.forEach((candidate, place) => {
      counted[candidate.source] = (counted[candidate.source] ?? -1) + 1;
      body.append(rowOf(candidate, counted[candidate.source], marks[place]));
    });
    table.append(body);
    box.append(table);
    if (entry.left_out) box.append(element("p", "soft small", "and " + entry.left_out + " more that this page leaves out"));
    return box;
  }

  function chipsOf(entry) {
    const chips = element("div", "chips");
    const kept = entry.candidates.filter((candidate) => !candidate.dropped).length;
    chips.append(element("span", "chip", kept + " of " + entry.candidates.length + " kept"));
    if (entry.failure) chips.append(element("span", "chip warning", entry.failure));
    const description = entry.description;
    if (description) {
      if (description.attempts > 1) chips.append(element("span", "chip", description.attempts + " attempts"));
      for (const problem of description.problems) chips.append(element("span", "chip warning", problem));
    }
    return chips;
  }

  function card(entry) {
    const box = element("article", "entry");
    const body = element("div", "body");
    const marks = entry.candidates.map(markOf);
    const description = entry.description;
    const text = element("div", "description", description ? description.text || "(empty)" : "no description");
    text.dir = "auto";
    body.append(text);
    if (entry.caption !== null) body.append(element("div", "caption", "whole image: " + entry.caption));
    body.append(chipsOf(entry));
    if (entry.candidates.length) body.append(tableOf(entry, marks));
    if (entry.prompt !== null) {
      const prompt = element("details", "prompt");
      prompt.append(element("summary", "", data.prompt), element("div", "said", entry.prompt));
      body.append(prompt);
    }
    const names = [entry.file, ...entry.also].join(", ");
    const size = entry.size.join(" × ");
    body.append(element("div", "identity", names + " · " + size + " · " + entry.image.slice(0, 12)));
    box.append(frameOf(entry, marks), body);
    return box;
  }

  const texts = (entry) => [
    entry.file,
    ...entry.also,
    entry.image,
    entry.caption || "",
    entry.description ? entry.description.text : "",
    ...entry.candidates.map((candidate) => candidate.text),
  ];

  function filtered() {
    const wanted = find("text").value.trim().toLowerCase();
    const state = find("state").value;
    const dropped = find("dropped").value;
    return data.entries.filter(
      (entry) =>
        (!state || entry.state === state) &&
        (!dropped || entry.candidates.some((candidate) => candidate.dropped === dropped)) &&
        (!wanted || texts(entry).some((text) => text.toLowerCase().includes(wanted))),
    );
  }

  const show = pagedList(10, "image", card, "pictures");
  for (const name of ["text", "state", "dropped"]) find(name).addEventListener("input", () => show(filtered()));
  const toggles = [...document.querySelectorAll("input[data-source]"), find("masks"), find("filtered")];
  for (const toggle of toggles) {
    const apply = () => root.toggleAttribute("data-" + (toggle.dataset.source || toggle.id), toggle.checked);
    toggle.addEventListener("input", apply);
    apply();
  }
  show(filtered());
})();
