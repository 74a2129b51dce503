"""The one stylesheet of all pages."""

from __future__ import annotations

from .palette import DARK, LIGHT, Palette


def _variables(palette: Palette) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.variables().items())


STYLESHEET = (
    f"""
:root {{ {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{
:root {{ {_variables(DARK)} }}
}}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 .5rem; text-wrap: balance; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p, ul { max-width: 46rem; margin: .6rem 0; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; }
small, .lead, dt, figcaption, caption { color: var(--faint); font-weight: normal; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.75rem 0; }
.card { background: var(--card); border-radius: .6rem; padding: .9rem 1rem; display: flex; flex-direction: column; }
.card b { font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.card span { line-height: 1.35; margin: .2rem 0 .4rem; }
.card small { margin-top: auto; line-height: 1.35; }
.scroll { overflow-x: auto; background:
  linear-gradient(to left, var(--paper) 1.5rem, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat scroll; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1.75rem; align-items: flex-start; }
figure { margin: .9rem 0; min-width: 0; max-width: 100%; flex: 0 1 auto; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figcaption { width: 0; min-width: 100%; }
figcaption, caption { font-size: .85rem; line-height: 1.45; max-width: 46rem; margin-top: .5rem; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; margin: 1rem 0; }
th, td { padding: .38rem 0 .38rem 1.25rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; padding-left: 0; }
thead th { color: var(--faint); font-weight: normal; vertical-align: bottom; line-height: 1.35; }
thead th:first-child { font-weight: normal; }
.strong th, .strong td, .strong th:first-child { font-weight: 650; }
.good { color: var(--hue-2); }
.bad { color: var(--bad); }
.faint { color: var(--faint); }
.prose th, .prose td { text-align: left; white-space: normal; vertical-align: top; }
.prose td { overflow-wrap: anywhere; }
.prose .good, .prose .bad, .prose .faint { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.1rem; margin: 0; max-width: 52rem; }
dd { margin: 0; min-width: 0; }
mark { background: none; color: var(--bad); font-weight: 650; }
mark.delete { text-decoration: line-through; font-weight: normal; }
@media print {
  body { padding: 0; max-width: none; font-size: 11px; }
  .scroll { overflow: visible; background: none; }
  figure, table, .cards, dl { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
)
