"""The demo's page: one HTML file with everything in it, light or dark as the reader's system is, and its neighbours."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from ..demo import Clip, Cost, Demo, site_name
from .demo_terminal import arrows, compared, conclusions, summary
from .groups_picture import save

BINARY = ("B", "KiB", "MiB", "GiB")
DECIMAL = ("", "k", "M", "G", "T", "P")


def write(demo: Demo, folder: Path) -> list[Path]:
    """Write ``index.html``, ``groups.png``, ``groups-dark.png`` and ``summary.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = save(demo.picture, folder, "groups")
    facts = summary(demo)
    figures = folder / "summary.json"
    figures.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = folder / "index.html"
    page.write_text(html(demo, facts, pictures), encoding="utf-8")
    return [page, *pictures.values(), figures]


def html(demo: Demo, facts: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The page; ``facts`` are those of :func:`affinity_pool.study.report.demo_terminal.summary`."""
    rules = "; ".join(f"{site_name(s)}: cosine ≥ {s.threshold:g}, window {s.window}" for s in demo.sites)
    about = facts["provenance"]
    machine = {name: about[name] for name in ("cores", "threads", "system", "commit", "date")}
    ran_on = {**facts["config"], "processor": about["device"], **machine, **about["versions"]}
    ran_on["sites"] = rules
    return PAGE.substitute(
        model=escape(Path(demo.model).name if Path(demo.model).exists() else demo.model),
        rules=escape(rules),
        cards="".join(_cards(demo)),
        light=_data_uri(pictures["light"]),
        dark=_data_uri(pictures["dark"]),
        title=escape(demo.picture.title),
        clips="".join(map(_clip, demo.clips)),
        path=" → ".join(["encoder", *map(site_name, demo.sites)]),
        costs="".join(_row(clip.name, clip.cost) for clip in demo.clips)
        + (_row("total", demo.cost, "total") if len(demo.clips) > 1 else ""),
        conclusions="".join(f"<li>{escape(line)}</li>" for line in [*conclusions(demo), *demo.notes]),
        encoder=ENCODER if demo.cost.flops[0].encoder else "",
        runs=demo.runs,
        facts="".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value or 'not installed'))}</td></tr>"
            for name, value in ran_on.items()
        ),
    )


def _cards(demo: Demo) -> list[str]:
    cost = demo.cost
    low, high = cost.ttft.interval
    cards = [
        _card(f"{cost.audio_tokens[-1] / cost.audio_tokens[0]:.0%}", "of the audio tokens left", arrows(cost)),
        _card(
            f"{cost.flops_ratio:.0%}",
            "of the decoder's prefill FLOPs",
            f"{size(cost.flops[0].decoder, 'FLOP')} → {size(cost.flops[1].decoder, 'FLOP')}",
        ),
        _card(
            f"{cost.kv_bytes[1] / cost.kv_bytes[0]:.0%}",
            "of the KV cache",
            f"{size(cost.kv_bytes[0])} → {size(cost.kv_bytes[1])}",
        ),
        _card(
            f"{cost.ttft.ratio:.2f}×",
            "time to first token, vanilla over pooled",
            f"95 % interval {low:.2f} to {high:.2f}",
        ),
    ]
    if demo.errors:
        vanilla, pooled = demo.errors
        cards.insert(
            1, _card(f"{pooled.rate:.1%}", "WER with pooling", f"{vanilla.rate:.1%} without; {vanilla.words} words")
        )
    return cards


def _card(figure: str, what: str, detail: str) -> str:
    return f'<div class="card"><b>{figure}</b><span>{what}</span><small>{detail}</small></div>'


def _clip(clip: Clip) -> str:
    asked = "" if clip.prompt == "transcribe" else f", asked: {escape(clip.prompt)}"
    lines = [("vanilla", _marked(clip, clip.vanilla)), ("pooled", _marked(clip, clip.pooled))]
    if clip.reference is not None:
        lines.insert(0, ("reference", escape(clip.reference)))
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines)
    return f"<h3>{escape(clip.name)} <small>{clip.seconds:.1f} s{asked}</small></h3><dl>{rows}</dl>"


def _marked(clip: Clip, answer: str) -> str:
    return " ".join(
        escape(word) if kind == "equal" else f'<mark class="{kind}">{escape(word)}</mark>'
        for word, kind in compared(clip, answer)
    )


def _row(name: str, cost: Cost, kind: str = "clip") -> str:
    low, high = cost.ttft.interval
    cells = [
        arrows(cost),
        f"{size(cost.flops[0].decoder, '')} → {size(cost.flops[1].decoder, '')} ({cost.flops_ratio:.1%})",
        f"{size(cost.kv_bytes[0])} → {size(cost.kv_bytes[1])} ({cost.kv_bytes[1] / cost.kv_bytes[0]:.1%})",
        f"{median(cost.ttft.vanilla) * 1e3:.1f} → {median(cost.ttft.pooled) * 1e3:.1f} ms",
        f"{cost.ttft.ratio:.2f} [{low:.2f}, {high:.2f}]",
    ]
    return f'<tr class="{kind}"><th>{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def size(number: float, unit: str = "B") -> str:
    """A number of bytes (1024) or, with another unit, of that (1000), with three digits."""
    base, prefixes = (1024, BINARY) if unit == "B" else (1000, tuple(f"{p}{unit}" for p in DECIMAL))
    power = 0
    while number >= base and power < len(prefixes) - 1:
        number, power = number / base, power + 1
    return f"{number:.3g} {prefixes[power]}"


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


ENCODER = (
    " The audio encoder runs before all of it and is not in this figure; pooling leaves it as it is, but it is part of "
    "the time to first token."
)

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Dual Affinity Pooling on $model</title>
<style>
:root { --paper: #fff; --ink: #1c2430; --faint: #5d6978; --line: #dfe4ea; --card: #f4f6f9; --bad: #c02b4a; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161c; --ink: #e6eaf0; --faint: #98a3b1; --line: #2a323d; --card: #1a2029; --bad: #ff8fa3; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p { max-width: 46rem; margin: .4rem 0; }
small, .lead, dt { color: var(--faint); font-weight: normal; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .8rem .9rem; display: flex; flex-direction: column; }
.card b { font-size: 1.7rem; line-height: 1.2; }
.card span { line-height: 1.3; margin: .15rem 0 .35rem; }
.scroll { overflow-x: auto; }
.scroll img { display: block; width: 100%; min-width: 50rem; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
thead th { color: var(--faint); font-weight: normal; vertical-align: bottom; }
.total th, .total td { font-weight: 650; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dd { margin: 0; }
mark { background: none; color: var(--bad); font-weight: 650; }
mark.delete { text-decoration: line-through; font-weight: normal; }
</style>
<h1>Dual Affinity Pooling on $model</h1>
<p class="lead">The same recordings through the same model twice: as it is, and with similar neighbouring audio tokens
merged ($rules).</p>
<div class="cards">$cards</div>
<ul>$conclusions</ul>

<h2>Where the tokens went</h2>
<div class="scroll"><picture>
<source media="(prefers-color-scheme: dark)" srcset="$dark">
<img src="$light" alt="Log-mel spectrogram of $title with the groups of audio tokens left after each site">
</picture></div>
<p><small>Bars stand for tokens and are as long as the time they cover; a number says how many tokens a group holds. The
colour is that of the group a token ends up in; grey stays alone to the end. Dashed lines are the words' edges, where
they are known.</small></p>

<h2>What it answered</h2>
$clips

<h2>What it cost</h2>
<div class="scroll"><table>
<thead><tr><th></th><th>audio tokens<br>$path</th><th>decoder prefill,<br>FLOPs</th><th>KV cache</th>
<th>first token</th><th>ratio [95 %]</th></tr></thead>
<tbody>$costs</tbody></table></div>

<h2>What is measured</h2>
<p><b>WER</b>: substituted, deleted and inserted words per word of the reference, over all recordings together; case and
punctuation do not count. Marked words are wrong (without a reference: differ from the vanilla answer), struck-through
ones are missing.</p>
<p><b>Audio tokens</b>: what the encoder makes of the recording, and what is left after each site. Text is never
merged.</p>
<p><b>Decoder prefill</b>: operations of the matrix products for the whole prompt, text included, computed from the
tokens each layer sees; attention counts the full square; logits of the last token only.$encoder</p>
<p><b>KV cache</b>: bytes of keys and values of the prompt in all layers.</p>
<p><b>First token</b>: from features in memory to the first token's id, encoder, prefill and the pooling itself
included: medians of $runs pairs of runs, vanilla and pooled in turn, after two pairs of warm-up. The ratio is the
median over pairs of vanilla over pooled, above 1 where pooling is faster; its interval is that of a median (order
statistics). If the interval holds 1, no difference was shown.</p>

<h2>What it ran on</h2>
<div class="scroll"><table class="facts"><tbody>$facts</tbody></table></div>
</html>
""")
