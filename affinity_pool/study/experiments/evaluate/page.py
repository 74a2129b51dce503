"""The page of an evaluation: every task's figures, pooled and not, beside baselines at the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ....models.settings import check_attention
from ...report.charts import Bars, Point, Series, bars, frontier, lines
from ...report.figures import Chart
from ...report.page import Card, Cell, Page, Section, Table
from ...report.phrases import (
    INTERVALS,
    Claim,
    change,
    claims,
    form,
    holds_zero,
    left_out,
    metrics_used,
    model_name,
    plain,
    ran_on,
    value,
    with_interval,
)
from ...runs.results import ConditionResult, ConditionsSummary, Estimate, MetricResult, ScoreResult
from ...sites import with_attention
from .run import CHOICES, SHARES, THRESHOLDS

METHOD = {
    THRESHOLDS: "Affinity Pooling",
    SHARES: "Affinity Pooling to a share",
    "speed-up": "speed-up",
    "random-drop": "Random Drop",
    "uniform-drop": "Uniform Drop",
    "uniform-merge": "Uniform Merge",
    "interpolate": "interpolation",
    "bipartite-merge": "bipartite merge",
}


def page(summary: ConditionsSummary) -> Page:
    """Of ``summary.json``."""
    tasks = list(summary["metrics"])
    unpooled, *others = summary["conditions"]
    choices = [condition for condition in others if condition["method"] in CHOICES]
    return Page(
        title=f"Affinity Pooling on {model_name(summary['config'])}",
        lead=f"The same recordings through the same model, unpooled, pooled, and reduced to the very same number of "
        f"tokens by other means. {unpooled['utterances']} recordings; tasks: {', '.join(tasks)}.",
        cards=[card for choice in choices[:1] for card in _cards(summary, unpooled, choice)],
        findings=[*(line for choice in choices for line in _findings(summary, choice)), *left_out(summary)],
        sections=[
            Section("All tasks", [_overview(summary, tasks)]),
            *_pairs(choices, summary),
            *(_comparison(summary, choice) for choice in choices if _baselines(summary, choice)),
            *([_tokens(summary, choices, tasks)] if len(choices) > 1 else []),
            *([claims(_claims(summary, choices))] if choices else []),
            *(Section(f"Task “{task}”", [_table(summary, task)]) for task in tasks),
            Section("How it is measured", [HOW, INTERVALS, *metrics_used(summary)]),
        ],
        facts=ran_on(summary),
    )


def label(condition: ConditionResult) -> str:
    """What a condition is called in tables and charts."""
    return "unpooled" if "method" not in condition else METHOD[condition["method"]]


def attention_of(condition: ConditionResult) -> str:
    """Plain in runs from before there was a choice."""
    return condition.get("attention", "plain")


def _line(condition: ConditionResult) -> str:
    """The series in charts that a condition belongs to."""
    return with_attention(label(condition), check_attention(attention_of(condition)))


def kept(condition: ConditionResult, digits: int = 0) -> str:
    """Tokens left after each site."""
    return " → ".join(f"{share:.{digits}%}" for share in condition["retention"]) or "100%"


def _heard(condition: ConditionResult) -> list[str]:
    """The share left of the recordings' own tokens, where a model has others of padding; else nothing."""
    return [f"{condition['heard_retention']:.1%}"] if "heard_retention" in condition else []


def _baselines(summary: ConditionsSummary, choice: ConditionResult) -> list[ConditionResult]:
    return [
        condition
        for condition in summary["conditions"][1:]
        if condition["sites"] == choice["sites"] and condition["method"] not in CHOICES
    ]


def _cards(summary: ConditionsSummary, unpooled: ConditionResult, choice: ConditionResult) -> list[Card]:
    cards = [
        Card(f"{choice['retention'][-1]:.0%}", "of the audio tokens left", kept(choice)),
        Card(f"{choice['relative_flops']:.0%}", "of the decoder's prefill FLOPs", choice["sites"]),
    ]
    for task, (head, *_) in summary["metrics"].items():
        now, before = (condition["scores"][task][head["name"]] for condition in (choice, unpooled))
        detail = f"{value(head, before)} unpooled; {now['utterances']} answers"
        cards.append(Card(value(head, now), f"{head['title']}, {task}", detail))
    return cards


def _findings(summary: ConditionsSummary, choice: ConditionResult) -> list[str]:
    said = []
    for task, (head, *_) in summary["metrics"].items():
        score = choice["scores"][task][head["name"]]
        said.append(
            f"{choice['sites']}, {kept(choice)} of the audio tokens"
            + "".join(f" ({share} of the recordings' own)" for share in _heard(choice))
            + f": {head['title']} of “{task}” "
            f"{value(head, score)}, {_told(head, score['difference'])} against the unpooled model"
            + (
                f", {_told(head, choice['against_affinity'][task][head['name']])} against {choice['beside']}."
                if "beside" in choice
                else "."
            )
        )
    if "as_shares" in choice and "beside" not in choice:
        said.append(f"The shares that leave as many tokens as {choice['sites']}: `--sites {choice['as_shares']}`.")
    return said


def _told(metric: MetricResult, difference: Estimate | None) -> str:
    moved = change(metric, difference)
    verdict = "no difference that could be shown" if isinstance(moved, str) else (
        "**worse**" if moved.kind == "bad" else "better"
    )  # fmt: skip
    return f"{plain(moved)} points ({verdict})"


def _pairs(choices: Sequence[ConditionResult], summary: ConditionsSummary) -> list[Section]:
    """For each choice that stands beside another both, and what lies between them."""
    by_sites = {choice["sites"]: choice for choice in choices}
    heads = [(task, metrics[0]) for task, metrics in summary["metrics"].items()]
    shares: list[Table] = []
    proportional: list[Table] = []
    for choice in choices:
        if "beside" not in choice:
            continue
        other = by_sites[choice["beside"]]
        weighed = attention_of(choice) != attention_of(other)
        rows: list[list[str | Cell]] = [
            [
                one["sites"],
                kept(one, digits=1),
                f"{one['relative_flops']:.1%}",
                *(with_interval(head, one["scores"][task][head["name"]]) for task, head in heads),
            ]
            for one in (other, choice)
        ]
        differences = [change(head, choice["against_affinity"][task][head["name"]]) for task, head in heads]
        less = "proportional - plain" if weighed else "shares - thresholds"
        rows.append([f"{less}, points", "", "", *differences])
        titles = [f"{head['title']}\n{task}" for task, head in heads]
        table = Table(["", "audio tokens left", "prefill FLOPs", *titles], rows, strong=[2])
        (proportional if weighed else shares).append(table)
    return [
        *([Section("Thresholds and shares", [BESIDE, *shares])] if shares else []),
        *([Section("Plain and proportional attention", [WEIGHED, *proportional])] if proportional else []),
    ]


def _overview(summary: ConditionsSummary, tasks: Sequence[str]) -> Table:
    heads = [summary["metrics"][task][0] for task in tasks]
    rows: list[list[str | Cell]] = []
    for condition in summary["conditions"]:
        name = label(condition)
        if condition.get("method") in CHOICES:
            name = f"{name}, {condition['sites']}"
        scores = [condition["scores"][task][head["name"]] for task, head in zip(tasks, heads, strict=True)]
        marks = [_marked(head, score) for head, score in zip(heads, scores, strict=True)]
        rows.append([name, kept(condition), *_heard(condition), f"{condition['relative_flops']:.1%}", *marks])
    strong = [at for at, condition in enumerate(summary["conditions"]) if condition.get("method") in CHOICES]
    heard = _heard(summary["conditions"][0])
    titles = [f"{head['title']}\n{task}" for task, head in zip(tasks, heads, strict=True)]
    return Table(
        ["", "audio tokens left", *(["of the recordings' own tokens"] if heard else []), "prefill FLOPs", *titles],
        rows,
        "Coloured where the interval of the difference to the unpooled model does not hold 0.",
        strong=strong,
    )


def _marked(metric: MetricResult, score: ScoreResult) -> Cell | str:
    """A value, coloured as its difference to the unpooled model is."""
    moved = change(metric, score["difference"])
    return Cell(value(metric, score), moved.kind) if isinstance(moved, Cell) else value(metric, score)


def _comparison(summary: ConditionsSummary, choice: ConditionResult) -> Section:
    """Bars for each task: the choice and its baselines."""
    shown = [choice, *_baselines(summary, choice)]

    def chart(at: int, task: str, head: MetricResult) -> Chart:
        scores = [condition["scores"][task][head["name"]] for condition in shown]
        intervals = [score["interval_95"] for score in scores]
        return bars(
            f"budget-{_slug(choice['sites'])}-{at}",
            [label(condition) for condition in shown],
            [Bars(head["title"], [score["value"] for score in scores], intervals)],
            x=f"{head['title']}, {head['better']} is better",
            title=task,
            baseline=("unpooled", summary["conditions"][0]["scores"][task][head["name"]]["value"]),
            form=form(head),
            width=430,
        )

    return Section(
        f"At the same budget: {choice['sites']}, {kept(choice)} of the audio tokens",
        [chart(at, task, metrics[0]) for at, (task, metrics) in enumerate(summary["metrics"].items())],
    )


def _tokens(summary: ConditionsSummary, choices: Sequence[ConditionResult], tasks: Sequence[str]) -> Section:
    """Error against tokens left: a curve a method where all sites are at the input, else points."""
    at_input = all(choice["layers"] == [0] for choice in choices)
    charts: list[str | Chart] = []
    for task in tasks:
        head = summary["metrics"][task][0]
        baseline = ("unpooled", summary["conditions"][0]["scores"][task][head["name"]]["value"])
        if at_input:
            charts.append(_curves(summary, task, head, baseline))
        else:
            points = [
                Point(
                    condition["relative_flops"],
                    condition["scores"][task][head["name"]]["value"],
                    condition["sites"] if condition["method"] in CHOICES else "",
                    _line(condition),
                )
                for condition in summary["conditions"][1:]
            ]
            if head["better"] == "lower":
                charts.append(
                    frontier(
                        f"flops-{_slug(task)}",
                        points,
                        x="decoder prefill FLOPs, share of the unpooled",
                        y=head["title"],
                        title=task,
                        baseline=baseline,
                        forms=(".0%", form(head)),
                    )
                )
    return Section("What tokens buy", charts or ["Metrics where higher is better are in the tables."])


def _curves(summary: ConditionsSummary, task: str, head: MetricResult, baseline: tuple[str, float]) -> Chart:
    return lines(
        f"tokens-{_slug(task)}",
        series_of(summary["conditions"][1:], task, head),
        x="audio tokens left at the input, %",
        y=head["title"],
        title=task,
        baseline=baseline,
        form=form(head),
    )


def series_of(conditions: Sequence[ConditionResult], task: str, head: MetricResult) -> list[Series]:
    """A line for each method, and each attention it was run with."""
    series: list[Series] = []
    pooled = sorted(conditions, key=lambda c: list(METHOD).index(c["method"]))
    for line in dict.fromkeys(map(_line, pooled)):
        found = sorted(
            (100 * c["retention"][0], c["scores"][task][head["name"]]["value"]) for c in pooled if _line(c) == line
        )
        series.append(Series(line, [x for x, _ in found], [y for _, y in found], dash=len(series) % 3))
    return series


def _table(summary: ConditionsSummary, task: str) -> Table:
    metrics = summary["metrics"][task]
    header = ["", "audio tokens left"]
    for at, metric in enumerate(metrics):
        header += [metric["title"], "- unpooled, points"]
        header += ["- Affinity Pooling, points"] if not at else []
    rows: list[list[str | Cell]] = []
    for condition in summary["conditions"]:
        name = label(condition)
        row: list[str | Cell] = [f"{name}, {condition['sites']}" if "sites" in condition else name, kept(condition)]
        for at, metric in enumerate(metrics):
            score = condition["scores"][task][metric["name"]]
            row += [with_interval(metric, score), change(metric, score["difference"])]
            if not at:
                row.append(change(metric, condition.get("against_affinity", {}).get(task, {}).get(metric["name"])))
        rows.append(row)
    return Table(header, rows)


def _claims(summary: ConditionsSummary, choices: Sequence[ConditionResult]) -> list[Claim]:
    found = []
    for choice in choices:
        scores = [(task, m[0], choice["scores"][task][m[0]["name"]]) for task, m in summary["metrics"].items()]
        moved = "; ".join(f"{task} {plain(change(head, score['difference']))}" for task, head, score in scores)
        found.append(
            Claim(
                "Pooling keeps the accuracy of transcription, question answering and translation.",
                f"{choice['sites']}, {kept(choice)} left: {moved} points",
                all(holds_zero(score["difference"]) for _, _, score in scores),
            )
        )
        rivals = [
            change(head, other["against_affinity"][task][head["name"]])
            for other in _baselines(summary, choice)
            for task, (head, *_) in summary["metrics"].items()
        ]
        shown = [moved.kind for moved in rivals if isinstance(moved, Cell)]
        worse, better = shown.count("bad"), shown.count("good")
        if rivals:
            found.append(
                Claim(
                    "At one budget other reductions lose more.",
                    f"{choice['sites']}: of {len(rivals)} comparisons the other is worse in {worse}, better in "
                    f"{better}, and the rest show nothing",
                    False if better else True if 2 * worse >= len(rivals) else None,
                )
            )
    return found


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")


BESIDE = (
    "At a threshold each recording is left what its similarities leave it; a share is the same of every recording, and "
    "how many tokens that makes is known before the model runs. Differences are of pairs of answers."
)

WEIGHED = (
    "With proportional attention a token that n tokens have merged into gets log n added to its attention scores, in "
    "every layer from its site on, and so weighs as they would together; with plain attention, as in the paper, it "
    "weighs as much as any other. At the first site both merge the same tokens. What enters a deeper one differs, and "
    "so may the number that a threshold leaves there, as the figures tell; shares leave as many. Baselines have the "
    "attention of what they stand beside: a mean weighs as the tokens in it, what is left of dropped or interpolated "
    "tokens as one."
)

HOW = (
    "Each baseline gets, for every recording and at every site, exactly as many audio tokens as Affinity Pooling left "
    "there; speed-up plays the recording faster (its pitch kept) until it has as many. Answers are greedy. Prefill "
    "FLOPs are the decoder's, computed from the tokens each layer sees, text included."
)
