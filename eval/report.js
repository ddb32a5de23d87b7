// The browser of questions.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const two = data.runs.length === 2;
  const controls = ["task", "kind", "score", "change", "sort", "cut-off", "disagree", "text"].map(find).filter(Boolean);

  const last = (row) => row.answers[row.answers.length - 1];
  const headline = (task, answer) => answer.scores[task.headline];
  const gain = (task, row) => (two ? headline(task, row.answers[1]) - headline(task, row.answers[0]) : 0);
  const disagree = (answer) => Math.max(...answer.scores) - Math.min(...answer.scores) > 1e-9;

  const bySearch = (row, wanted) =>
    row.question.toLowerCase().includes(wanted) ||
    String(row.id).toLowerCase().includes(wanted) ||
    row.references.some((reference) => reference.toLowerCase().includes(wanted)) ||
    row.answers.some((answer) => answer.text.toLowerCase().includes(wanted));
  const ofScore = {
    any: () => true,
    zero: (score) => score === 0,
    partial: (score) => score > 0 && score < 1,
    full: (score) => score >= 1,
  };
  const ofChange = {
    any: () => true,
    changed: (task, row) => row.answers[0].text !== row.answers[1].text,
    gained: (task, row) => gain(task, row) > 0,
    lost: (task, row) => gain(task, row) < 0,
  };
  const orders = {
    row: () => 0,
    low: (one, other) => headline(one.task, last(one.row)) - headline(other.task, last(other.row)),
    high: (one, other) => headline(other.task, last(other.row)) - headline(one.task, last(one.row)),
    gain: (one, other) => gain(other.task, other.row) - gain(one.task, one.row),
    loss: (one, other) => gain(one.task, one.row) - gain(other.task, other.row),
  };

  // Whole images, worst first by their mean score, so that the questions of one stand together.
  function byImage(found) {
    const groups = new Map();
    for (const one of found) {
      const key = JSON.stringify([one.task.name, one.row.image]);
      groups.set(key, [...(groups.get(key) || []), one]);
    }
    const mean = (group) =>
      group.reduce((sum, { task, row }) => sum + headline(task, last(row)), 0) / group.length;
    return [...groups.values()]
      .map((group) => ({ group, mean: mean(group) }))
      .sort((one, other) => one.mean - other.mean)
      .flatMap(({ group }) => group);
  }

  // The kinds of the chosen task's questions: 'kind: receipt', 'answer_type: number'…
  function offerKinds() {
    const offered = find("kind");
    const task = find("task").value;
    const shown = data.tasks.filter((one) => !task || one.name === task);
    const kinds = [...new Set(shown.flatMap((one) => one.rows.flatMap((row) => row.kinds)))].sort();
    const chosen = kinds.includes(offered.value) ? offered.value : "";
    const option = (value, label) => Object.assign(element("option", "", label), { value });
    offered.replaceChildren(option("", "all kinds"), ...kinds.map((kind) => option(kind, kind)));
    offered.value = chosen;
    offered.hidden = kinds.length === 0;
  }

  function filtered() {
    const value = (id, otherwise) => (find(id) ? find(id).value : otherwise);
    const wanted = value("text", "").trim().toLowerCase();
    const task = value("task", "");
    const kind = value("kind", "");
    const found = [];
    for (const one of data.tasks) {
      if (task && one.name !== task) continue;
      for (const row of one.rows) {
        if (kind && !row.kinds.includes(kind)) continue;
        if (!ofScore[value("score", "any")](headline(one, last(row)))) continue;
        if (two && !ofChange[value("change", "any")](one, row)) continue;
        if (find("cut-off").checked && !row.answers.some((answer) => answer.cut_off)) continue;
        if (find("disagree").checked && !row.answers.some(disagree)) continue;
        if (wanted && !bySearch(row, wanted)) continue;
        found.push({ task: one, row });
      }
    }
    // Sorting is stable: rows of equal rank stay in the order of tasks and of the file.
    const order = value("sort", "row");
    return order === "image" ? byImage(found) : found.sort(orders[order]);
  }

  // Text of a run, in whatever language.
  function spoken(tag, className, text) {
    return Object.assign(element(tag, className, text), { dir: "auto", lang: "" });
  }

  function picture(row, isSame) {
    const box = element("div", "picture");
    if (isSame) {
      box.append(element("div", "soft small", "the same image"));
    } else if (row.picture === null) {
      box.append(element("div", "none", "no image in this page"));
    } else {
      const image = element("img");
      image.src = data.pictures[row.picture];
      image.alt = "Picture asked about: " + row.image;
      image.loading = "lazy";
      box.append(image);
    }
    return box;
  }

  function answerBox(task, answer, number) {
    const box = element("div", number ? "answer b" : "answer");
    if (two) box.append(element("div", "small " + (number ? "name-b" : "name-a"), data.runs[number]));
    box.append(spoken("div", answer.text ? "said" : "said empty", answer.text || "(empty)"));
    const chips = element("div", "chips");
    task.variants.forEach((variant, place) => {
      const score = answer.scores[place];
      const kind = score >= 1 ? " full" : score === 0 ? " nothing" : "";
      const chip = element("span", "chip" + kind + (place === task.headline ? " head" : ""));
      chip.textContent = variant + " " + (100 * score).toFixed(score === 0 || score === 1 ? 0 : 1);
      chips.append(chip);
    });
    if (answer.cut_off) chips.append(element("span", "chip warning", "cut off"));
    box.append(chips);
    return box;
  }

  function card({ task, row }, place, onPage) {
    const isSame = place > 0 && onPage[place - 1].row.image === row.image;
    const box = element("article", isSame ? "question same" : "question");
    const body = element("div", "body");
    const asked = spoken("div", "asked", row.question);
    const references = element("div", "references", row.references.length > 1 ? "references: " : "reference: ");
    row.references.forEach((reference, place) => {
      if (place) references.append(" · ");
      references.append(spoken("b", "", reference));
    });
    const answers = element("div", "answers");
    row.answers.forEach((answer, number) => answers.append(answerBox(task, answer, number)));
    const prompt = element("details", "prompt");
    prompt.append(element("summary", "", "exact prompt"), element("code", "", JSON.stringify(row.prompt)));
    const named = [task.name, "row " + row.row, "id " + row.id, row.image, ...row.kinds];
    const identity = element("div", "identity", named.join(" · "));
    body.append(asked, references, answers, prompt, identity);
    box.append(picture(row, isSame), body);
    return box;
  }

  const show = pagedList(20, "question", card, "questions");
  const refresh = () => {
    offerKinds();
    show(filtered());
  };

  controls.forEach((control) => control.addEventListener("input", refresh));
  document.querySelectorAll("button[data-task]").forEach((button) =>
    button.addEventListener("click", () => {
      find("task").value = button.dataset.task;
      refresh();
      find("questions").scrollIntoView();
    }),
  );
  refresh();
})();
