"""The look of the report: one column, quiet colours, figures that line up, light or dark as the
reader's system is.
"""

CSS = """
:root { --page: #fbfbf9; --ink: #1c1c1e; --soft: #6a6a70; --line: #e3e3de; --fill: #f1f1ec; --accent: #2f6fd6;
  --good: #1f8a55; --bad: #c2412d; --warn: #fff6dd; --warn-line: #e6c764;
  --c0: #77777d; --c1: #d98a00; --c2: #0f9d74; --c3: #c065a0; --c4: #2f6fd6; --c5: #a8a8ad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #151517; --ink: #e8e8e4; --soft: #98989f; --line: #2d2d31; --fill: #1f1f22; --accent: #6ea3f5;
    --good: #4cc38a; --bad: #f0806c; --warn: #2b2615; --warn-line: #6e5b1f;
    --c0: #a2a2a8; --c1: #f0b04a; --c2: #3fc79c; --c3: #e092c4; --c4: #6ea3f5; --c5: #77777d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 1.5rem 6rem; }
h1 { font-size: 2.3rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 0.6rem; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 0 0 0.5rem; }
h3 { font-size: 0.95rem; margin: 1.8rem 0 0.5rem; }
p { margin: 0 0 1rem; max-width: 46rem; }
section { margin-top: 3.2rem; }
small { display: block; color: var(--soft); font-size: 0.78rem; line-height: 1.45; white-space: nowrap; }
data { text-decoration: none; cursor: default; }
.none { color: var(--soft); }
.kicker { color: var(--accent); font-weight: 600; margin: 0 0 0.4rem; }
.lead { font-size: 1.08rem; color: var(--soft); }
.status { font-weight: 600; display: flex; align-items: center; gap: 0.8rem; margin: 1.4rem 0 0.7rem; }
.track { width: 12rem; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; }
.track span { display: block; height: 100%; background: var(--accent); }
details summary { cursor: pointer; color: var(--soft); font-size: 0.85rem; margin-top: 0.6rem; }
.facts { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; color: var(--soft); font-size: 0.85rem; max-width: none; }
.notices { background: var(--warn); border: 1px solid var(--warn-line); border-radius: 8px; padding: 1rem 1.3rem; }
.notices h2 { font-size: 1rem; }
.notices ul { margin: 0; padding-left: 1.1rem; font-size: 0.92rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.tiles div { background: var(--fill); border-radius: 10px; padding: 1.1rem 1.3rem; }
.tiles h3 { margin: 0; color: var(--soft); font-weight: 500; }
.tiles p { font-size: 2.1rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.3; margin: 0; }
.tiles small { white-space: normal; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: 0.9rem; min-width: 24rem; }
table.wide, table.trace { width: 100%; }
th, td { text-align: right; padding: 0.42rem 0 0.42rem 1.6rem; vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; font-weight: 450; position: sticky; left: 0;
  background: var(--page); }
thead th { color: var(--soft); font-weight: 500; font-size: 0.82rem; border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th.group { font-weight: 650; padding-top: 1.1rem; }
table.dense th, table.dense td { padding-top: 0.22rem; padding-bottom: 0.22rem; }
table.dense tbody tr + tr > * { border-top: 0; }
table.dense small { white-space: normal; min-width: 18rem; }
table.dense tbody th.group { padding-top: 0.9rem; }
td b { font-weight: 650; }
.dot, .legend i { display: inline-block; width: 0.65rem; height: 0.65rem; border-radius: 50%; margin-right: 0.55rem;
  background: var(--c); }
.legend i { width: 1.1rem; height: 0; border-radius: 0; background: none; border-top: 2.5px solid var(--c);
  vertical-align: middle; }
.legend i.dashed { border-top-style: dashed; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; list-style: none; margin: 0; padding: 0;
  font-size: 0.82rem; color: var(--soft); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2.5rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.beside > div { max-width: 100%; }
.beside > div + div { flex: 1 1 22rem; }
.pair > div { min-width: 0; }
figure { margin: 0; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 11.5px; fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg polyline.dashed { stroke-dasharray: 5 4; }
svg circle { fill: var(--c); stroke: var(--page); stroke-width: 1.2; }
svg .whisker { stroke: var(--c); stroke-width: 1.4; opacity: 0.45; }
svg .fill { fill: var(--accent); opacity: 0.8; }
.bar { display: inline-block; width: 5rem; height: 6px; border-radius: 3px; background: var(--line); overflow: hidden;
  vertical-align: 0.1em; margin-right: 0.4rem; }
.bar span { display: block; height: 100%; background: var(--accent); }
article { border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem 0.6rem; margin-top: 1.2rem; }
pre, code { font: 0.86rem/1.5 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.problem { font-weight: 600; }
.gold { color: var(--soft); font-size: 0.85rem; margin: 0.3rem 0 0.8rem; }
.verdict { color: var(--soft); font-size: 0.85rem; margin: 0 0 0.6rem; }
.badge { border-radius: 5px; padding: 0.1rem 0.5rem; margin-right: 0.4rem; color: var(--page); background: var(--soft);
  font-weight: 600; }
.badge.correct { background: var(--good); }
.badge.wrong { background: var(--bad); }
.trace th:first-child { width: 100%; white-space: normal; }
@media print { main { max-width: none; padding: 0; } article, figure { break-inside: avoid; } }
"""
