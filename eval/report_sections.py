"""The sections of the report as markup: header, scores, charts, tasks, and the frame of the browser of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.compare import Comparison, TaskComparison, comparison_row, shown_difference, shown_p
from eval.report_charts import PERCENT, Point, ScaleRow, histogram, legend, scale_chart, symmetric_scale
from eval.report_questions import Shown
from eval.run_folder import Run, TaskRun
from eval.score_table import score_table
from eval.tables import HEADS, PART_HEADS, notes, part_rows, shown, shown_interval, shown_metric, table_row
from monkey import html_page as markup

RUN_LETTERS = ("a", "b")
"""Which colours of report_page.css the runs have, in their order."""


@dataclass(frozen=True)
class Reported:
    """A task of the report: one run's, or the same task of two; results have their intervals."""

    tasks: tuple[TaskRun, ...]
    results: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return self.tasks[0].name

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [table_row(results) for results in self.results]


def with_intervals(task: TaskRun) -> Mapping[str, Any]:
    """A task's results; where they were stored without intervals, its scores are worked out from the lines."""
    if "interval" in task.headline:
        return task.results
    return {**task.results, "scores": score_table(task.results["metric"], task.lines, task.population)}


def header(runs: Sequence[Run], reported: Sequence[Reported]) -> str:
    names = " <span class='soft'>and</span> ".join(
        f'<span class="name-{letter}">{markup.text(run.name)}</span>'
        for letter, run in zip(RUN_LETTERS, runs, strict=False)
    )
    facts = []
    for place, run in enumerate(runs):
        results = [one.results[place] for one in reported]
        complete = all(one["complete"] for one in results)
        checkpoints = {str((one.get("checkpoint") or {}).get("path")) for one in results} - {"None"}
        prompts = {str((one.get("prompt") or {}).get("name")) for one in results} - {"None"}
        words = [
            f"checkpoint {', '.join(sorted(checkpoints))}" if checkpoints else "no checkpoint named",
            f"prompt {', '.join(sorted(prompts))}" if prompts else "",
            f"{sum(one['n'] for one in results):,} answers to {len(results)} tasks",
        ]
        badge = (
            '<span class="badge good">every question answered once</span>'
            if complete
            else '<span class="badge bad">incomplete</span>'
        )
        more = f" Unfinished: {', '.join(run.unfinished)}." if run.unfinished else ""
        name = f'<b class="name-{RUN_LETTERS[place]}">{markup.text(run.name)}</b>: ' if len(runs) > 1 else ""
        facts.append(f'<p class="soft small">{name}{markup.text(" · ".join(filter(None, words)) + more)} {badge}</p>')
    return (
        f"<div><h1>Evaluation of {names}</h1>{''.join(facts)}</div>"
        '<button id="theme" type="button" title="light or dark">◐</button>'
    )


def scores_section(reported: Sequence[Reported]) -> str:
    """The table of one run."""
    explained = (
        '<p class="soft small">Percentages with 95 % intervals. Ceiling: the best that any reference scores when it is '
        "given as the answer. Original: the published script's own rule, beside its ceiling. Monkey and Qwen-VL: as "
        "published.</p>"
    )
    body = [_score_cells(one.rows[0]) for one in reported]
    classes = ("text", "", "text", "main", *[""] * (len(HEADS) - 4))
    return markup.section("Scores", explained + markup.table(HEADS, body, classes), "scores")


def differences_section(reported: Sequence[Reported], comparison: Comparison) -> str:
    """The table of two runs."""
    first, second = (markup.text(run.name) for run in (comparison.first, comparison.second))
    explained = (
        f'<p class="small">A is <b class="name-a">{first}</b>, B is <b class="name-b">{second}</b>. Coloured: '
        "significant at 5 % by a sign-flip permutation test over images, after Holm's correction over the tasks.</p>"
        '<p class="soft small">Percentages; the interval is of the difference. Ceiling: the best that any reference '
        "scores when it is given as the answer. Monkey and Qwen-VL: scores as published.</p>"
    )
    columns = {
        "task": "text", "n": "", "A": "", "B": "", "B − A": "main", "95 % interval": "", "p (Holm)": "",
        "won / lost / tied": "", "ceiling": "", "Monkey": "", "Qwen-VL": "",
    }  # fmt: skip
    body = [_difference_cells(one, task.rows[0]) for one, task in zip(comparison.tasks, reported, strict=True)]
    left_out = [
        f"Only in {run.name}, not compared: {', '.join(names)}."
        for run, names in ((comparison.first, comparison.only_first), (comparison.second, comparison.only_second))
        if names
    ]
    table = markup.table(list(columns), body, list(columns.values()))
    return markup.section("Scores", explained + table + markup.bullets(left_out), "scores")


def _difference_cells(one: TaskComparison, published: Mapping[str, Any]) -> tuple[str, ...]:
    row = comparison_row(one)
    tone = "" if not one.is_significant else "good" if row["difference"] > 0 else "bad"
    return (
        _task_button(one.name, one.variant),
        str(row["n"]),
        shown(row["a"]),
        shown(row["b"]),
        f'<span class="{tone}">{shown_difference(row["difference"])}</span>',
        shown_interval(row["interval"], signed=True),
        shown_p(row["p_holm"]),
        f"{row['wins']} / {row['losses']} / {row['ties']}",
        shown(published["ceiling"]),
        shown(published["published"], 1),
        shown(published["published_qwen_vl"], 1),
    )


def _score_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    count = str(row["n"]) if row["complete"] else f'<span class="bad">{row["n"]} of {row["n_expected"]}</span>'
    return (
        _task_button(row["task"]),
        count,
        markup.text(shown_metric(row)),
        shown(row["value"]),
        shown_interval(row["interval"]),
        shown(row["ceiling"]),
        shown(row["original"]),
        shown(row["original_ceiling"]),
        shown(row["published"], 1),
        shown(row["published_qwen_vl"], 1),
    )


def _task_button(name: str, variant: str = "official") -> str:
    """A task's name, which shows its questions when it is pressed."""
    aside = "" if variant == "official" else f' <span class="soft small">{markup.text(variant)}</span>'
    return f'<button type="button" class="link" data-task="{markup.text(name)}">{markup.text(name)}</button>{aside}'


def chart_section(reported: Sequence[Reported], runs: Sequence[Run]) -> str:
    """Scores with whiskers, and beside them ceilings and published scores."""
    columns = {"ceiling": "ceiling", "monkey": "published", "qwen_vl": "published_qwen_vl"}
    rows = []
    for one in reported:
        table = one.rows
        points = [
            Point(row["value"], row["interval"], letter)
            for letter, row in zip(RUN_LETTERS, table, strict=False)
            if row["value"] is not None
        ]
        marks = {name: table[0][column] for name, column in columns.items() if table[0][column] is not None}
        caption = f"{one.name}: {' and '.join(shown(row['value']) for row in table)} percent"
        rows.append(ScaleRow(one.name, points, marks, caption))
    names = [(letter, markup.valid(run.name)) for letter, run in zip(RUN_LETTERS, runs, strict=False)]
    used = [name for name in columns if any(name in row.marks for row in rows)]
    return markup.section("Scores and intervals", legend(names, used) + scale_chart(rows, PERCENT), "chart")


def changes_section(comparison: Comparison) -> str:
    table = [comparison_row(one) for one in comparison.tasks]
    scale = symmetric_scale([value for row in table for value in (row["difference"], *(row["interval"] or ()))])
    rows = [
        ScaleRow(
            row["task"],
            [Point(row["difference"], row["interval"], "b")],
            caption=f"{row['task']}: {row['difference']:+.2f} percentage points",
        )
        for row in table
    ]
    explained = (
        f'<p class="soft small">{markup.text(comparison.second.name)} minus {markup.text(comparison.first.name)}, in '
        "percentage points, with intervals of a bootstrap clustered by image.</p>"
    )
    heads = ("task", "p", "p (Holm)", "McNemar", "smallest detectable")
    figures = [
        (
            markup.text(row["task"]),
            shown_p(row["p"]),
            shown_p(row["p_holm"]),
            shown_p(row["mcnemar"]),
            shown(row["detectable"]),
        )
        for row in table
    ]
    return markup.section(
        "What changed",
        explained + scale_chart(rows, scale, signed=True) + markup.table(heads, figures, ("text", "", "", "", "")),
        "changes",
    )


def tasks_section(reported: Sequence[Reported], runs: Sequence[Run]) -> str:
    return markup.section("Tasks", "".join(_task_details(one, runs) for one in reported), "tasks")


def _task_details(one: Reported, runs: Sequence[Run]) -> str:
    row = one.rows[-1]
    parts = []
    sentences = [
        (f"{run.name}: " if len(runs) > 1 else "") + note
        for run, results in zip(runs, one.results, strict=True)
        for note in notes(results)
    ]
    parts.append(markup.bullets(list(dict.fromkeys(sentences))))
    headline = one.results[0]["headline"]
    for letter, run, results in zip(RUN_LETTERS, runs, one.results, strict=False):
        if len(runs) > 1:
            parts.append(f'<h3 class="name-{letter}">{markup.text(run.name)}</h3>')
        parts.append(_variants(results))
        if of_parts := part_rows(results):
            body = [tuple(map(markup.text, row)) for row in of_parts]
            parts.append(markup.table(PART_HEADS, body, ("text", "text", "", "main", "", "", "")))
    distributions = [
        (letter, [line["scores"][headline] for line in task.lines if headline in line["scores"]])
        for letter, task in zip(RUN_LETTERS, one.tasks, strict=False)
    ]
    if any(scores for _, scores in distributions):
        name = f"Scores of the questions, {headline}"
        parts.append(f'<h3>{markup.text(name)}</h3><div class="histogram-box">{histogram(distributions, name)}</div>')
    for letter, run, results in zip(RUN_LETTERS, runs, one.results, strict=False):
        if len(runs) > 1:
            parts.append(f'<h3 class="name-{letter}">{markup.text(run.name)}</h3>')
        parts.append(markup.definitions(_facts(results)))
    values = " → ".join(shown(each["value"]) for each in one.rows)
    return (
        f"<details><summary><b>{markup.text(one.name)}</b><span>{values}</span>"
        f'<span class="soft small">{markup.text(shown_metric(row))}, n {row["n"]}</span></summary>'
        f'<div class="details">{"".join(parts)}</div></details>'
    )


def _variants(results: Mapping[str, Any]) -> str:
    heads = ("variant", "score", "± standard error", "95 % interval", "ceiling", "rule")
    body = [
        (
            f"<b>{markup.text(name)}</b>" if name == results["headline"] else markup.text(name),
            shown(figures["value"]),
            shown(figures.get("standard_error")),
            shown_interval(figures.get("interval")),
            shown(figures.get("ceiling")),
            markup.text(figures.get("meaning", "")),
        )
        for name, figures in results["scores"].items()
    ]
    return markup.table(heads, body, ("text", "main", "", "", "", "prose"))


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the scores are scores of; only what the run recorded."""
    headline = results["scores"][results["headline"]]
    prompt, data = results.get("prompt") or {}, results.get("dataset") or {}
    checkpoint = results.get("checkpoint") or {}
    counts = [f"{results['n_expected']} expected", f"{results['n']} answered"]
    for name, label in (
        ("missing", "missing"),
        ("duplicate", "duplicate"),
        ("foreign", "foreign"),
        ("failed", "failed"),
    ):
        counts += [f"{len(results[name])} {label}"] if results.get(name) else []
    for name, label in (("cut_off_at_max_new_tokens", "cut off"), ("empty", "empty")):
        counts += [f"{results[name]} {label}"] if results.get(name) else []
    published = results.get("published") or {}
    facts = [
        ("questions", ", ".join(counts)),
        ("interval", f"{headline.get('interval_method')} over {headline.get('clusters')} images"),
        ("prompt", None if "text" not in prompt else f"{prompt.get('name')}: "),
        ("checkpoint", checkpoint.get("path")),
        ("model", checkpoint.get("fingerprint")),
        ("data", None if "file" not in data else f"{data['file']}, SHA-256 {str(data.get('sha256'))[:16]}…"),
        ("generation", _settings(results.get("generation"))),
        ("versions", _settings(results.get("versions"))),
        ("revision", results.get("revision")),
        ("published in", published.get("source")),
    ]
    shown_facts = [(name, markup.text(value)) for name, value in facts if value is not None]
    # The blank at a prompt's end is part of it.
    quoted = f'<code>"{markup.text(prompt.get("text", ""))}"</code>'
    return [(name, value + quoted if name == "prompt" else value) for name, value in shown_facts]


def _settings(values: Mapping[str, Any] | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None) if values else None


def questions_section(chosen: Sequence[Shown], two: bool) -> str:
    scores = (("any", "any score"), ("zero", "score 0"), ("partial", "between"), ("full", "score 1"))
    changes = (
        ("changed", "another answer"),
        ("gained", "B scores more"),
        ("lost", "B scores less"),
        ("any", "all answers"),
    )
    orders = [("loss", "largest loss first"), ("gain", "largest gain first")] if two else []
    orders += [("image", "worst pictures first"), ("low", "lowest score first"), ("high", "highest score first")]
    orders += [("row", "as in the file")]
    names = [("", "all tasks"), *((one.task.name, one.task.name) for one in chosen)]
    change = f'<select id="change" aria-label="change">{markup.options(changes)}</select>' if two else ""
    return markup.section(
        "Questions",
        f"""<noscript><p>The browser of questions needs JavaScript, which this page carries with it.</p></noscript>
<div class="filters">
<select id="task" aria-label="task">{markup.options(names)}</select>
<select id="kind" aria-label="kind"></select>
<select id="score" aria-label="score">{markup.options(scores)}</select>
{change}
<select id="sort" aria-label="order">{markup.options(orders)}</select>
<input id="text" type="search" placeholder="text, answer, id" aria-label="search">
<label><input id="cut-off" type="checkbox">cut off</label>
<label><input id="disagree" type="checkbox">variants disagree</label>
</div>
<div class="pager"><button id="back" type="button">‹ back</button><span id="pages" aria-live="polite"></span>
<button id="next" type="button">next ›</button></div>
<p id="nothing" class="soft" hidden>No question in this page fits these filters.</p>
<div id="list"></div>""",
        "questions",
    )
