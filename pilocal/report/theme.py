"""The page's colours, in light and in dark, and its style sheet."""

from __future__ import annotations

from collections.abc import Mapping

from pilocal.chart import COLOURS

LIGHT: Mapping[str, str] = {
    "page": "#f5f7f9",
    "card": "#ffffff",
    "ink": "#1b2026",
    "soft": "#565f6a",
    "line": "#d5d9df",
    "accent": "#0a62a8",
    "good": "#1f6f2f",
    "bad": "#b42318",
    "series0": "#0a62a8",
    "series1": "#b4430a",
    "series2": "#1f6f2f",
    "series3": "#646c76",
    "series4": "#862e9c",
}
"""Every colour of the page by its name in the style sheet; print is light, too."""

DARK: Mapping[str, str] = {
    "page": "#14181c",
    "card": "#1d2228",
    "ink": "#e6eaee",
    "soft": "#a8b2bc",
    "line": "#454e58",
    "accent": "#6cbcf6",
    "good": "#7fd894",
    "bad": "#ff9d94",
    "series0": "#6cbcf6",
    "series1": "#ffab7a",
    "series2": "#7fd894",
    "series3": "#aab3bd",
    "series4": "#dba6ec",
}
"""The same names where the reader's system is dark."""

TEXT = ("ink", "soft", "accent", "good", "bad", *(f"series{number}" for number in range(len(COLOURS))))
"""The colours that letters and lines have."""

SURFACES = ("page", "card")
"""The colours that lie below them."""

OF_CHARTS: Mapping[str, str] = {
    "#000000": "ink",
    "#ffffff": "card",
    "#dddddd": "line",
    "#bbbbbb": "soft",
    **{colour: f"series{number}" for number, colour in enumerate(COLOURS)},
}
"""The page's colour for each that pilocal.chart draws with."""

RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--page); overflow-wrap: break-word; }
header p { margin: .25rem 0; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, .note { color: var(--soft); }
figcaption, .note { font-size: .9rem; max-width: 46rem; }
section { margin-top: 1.25rem; padding: 1.25rem; border: 1px solid var(--line); border-radius: .75rem;
  background: var(--card); }
figure { margin: 0 0 1rem; }
.box { overflow-x: auto; max-width: 100%; margin: .5rem 0; }
.tall { max-height: 26rem; overflow-y: auto; border: 1px solid var(--line); border-radius: .5rem; padding: 0 .5rem; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
svg.chart { display: block; width: 100%; min-width: 36rem; max-width: 50rem; height: auto; }
svg.fits { min-width: 0; max-width: 36rem; }
svg.chart * { stroke-linejoin: round; stroke-linecap: butt; }
svg.chart text { fill: var(--ink); }
dl.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 0; }
dl.wide { grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
dl.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
dl.figures dt { color: var(--soft); font-size: .85rem; }
dl.figures dd { margin: 0; }
dl.figures dd.value { font-size: 1.5rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
dl.figures dd.more { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .35rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-top: 1px solid var(--line); }
thead th { border: 0; white-space: normal;
  color: var(--soft); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th:first-child, th.text, td.text { text-align: left; }
tbody th { font-weight: 500; }
th.long, td.long { white-space: normal; min-width: 14rem; max-width: 28rem; overflow-wrap: anywhere; }
.hash { font: .85rem/1.5 ui-monospace, monospace; }
code, pre { font: .88rem/1.5 ui-monospace, monospace; }
code { overflow-wrap: anywhere; }
.flag { white-space: nowrap; }
pre { margin: .5rem 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
del { color: var(--soft); }
ins { color: var(--good); }
.missing { border-left: 3px solid var(--accent); padding-left: .75rem; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
ol.answers { margin: 0; padding: 0; list-style: none; }
ol.answers li { padding: .9rem 0; border-top: 1px solid var(--line); }
.query { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .35rem; }
dl.said { display: grid; grid-template-columns: minmax(8rem, 16rem) 1fr; gap: .25rem 1rem; margin: 0; }
dl.turns { grid-template-columns: 7rem 1fr; margin: .5rem 0; }
dl.said dt { color: var(--soft); font-size: .9rem; }
dl.said dt span { display: block; }
dl.said dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .88rem/1.6 ui-monospace, monospace; }
footer { margin-top: 1.5rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) {
  body { padding: 1rem .6rem 2rem; }
  section { padding: .9rem; }
  tbody th { white-space: normal; min-width: 7rem; }
  dl.said, dl.turns { grid-template-columns: 1fr; gap: 0; }
  dl.said dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 1.5cm; }
  html { font-size: 10pt; }
  body { padding: 0; max-width: none; background: none; }
  table, thead th { font-size: .85rem; }
  section { border: 0; padding: 0; margin-top: 1rem; }
  figure, tr, li, dl.figures div { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .box { overflow: visible; max-height: none; border: 0; padding: 0; }
  svg.chart { min-width: 0; max-width: 16cm; }
  svg.fits { max-width: 11cm; }
  th, td { white-space: normal; padding-right: .6rem; }
  .hash { overflow-wrap: anywhere; }
}
"""


def style_sheet() -> str:
    """Return the page's CSS: light, dark where the reader's system is dark, and light in print."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in some.items()) for some in (LIGHT, DARK))
    themes = (
        f":root {{ color-scheme: light; {light} }}",
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {dark} }} }}",
    )
    return "\n".join(themes) + RULES
