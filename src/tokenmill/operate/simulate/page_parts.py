"""The page's style and its script: all that a report needs to look right without a network.

Light and dark follow the reader's setting. The script only shows the values under the pointer.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2430; --dim: #5c6675; --rule: #e3e7ed; --page: #fff;
  --card: #f7f8fa; --good: #1a7f4b; --bad: #b3362b;
  --c0: #2b6cd4; --c1: #d2691e; --c2: #1f8f6b; --c3: #8a56c2; --c4: #a88400; --c5: #c23a6a; --c6: #0f8ca3;
  --c7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --dim: #9aa4b2; --rule: #2c333e;
  --page: #14181f; --card: #1c222b; --good: #58c78d; --bad: #f08378;
  --c0: #6ea3f5; --c1: #f09a5a; --c2: #5cc7a2; --c3: #bb94ea; --c4: #d9b84a; --c5: #ee82a8; --c6: #5cc3d6;
  --c7: #a3abb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1180px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 32px 0 10px; }
p { margin: 2px 0; color: var(--dim); }
.kept { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
  margin: 16px 0; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 12px; }
.tile span { display: block; color: var(--dim); font-size: 12px; }
.tile b { font-size: 20px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--dim); font-weight: 500; }
td.better { color: var(--good); } td.worse { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr));
  gap: 14px; }
figure { position: relative; margin: 0; background: var(--card); border-radius: 8px; padding: 12px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; color: var(--dim); font-size: 12px;
  margin-bottom: 4px; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; }
.legend i.dashed { opacity: .45; }
text { fill: var(--dim); font-size: 11px; } text.x { text-anchor: middle; } text.y { text-anchor: end; }
text.limit { text-anchor: end; fill: var(--bad); }
line.grid { stroke: var(--rule); } line.limit { stroke: var(--bad); stroke-dasharray: 3 3; }
line.cross { stroke: var(--dim); visibility: hidden; }
path.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
path.dashed { stroke-dasharray: 5 4; stroke-width: 1.3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); }
.b3 { background: var(--c3); } .b4 { background: var(--c4); } .b5 { background: var(--c5); }
.b6 { background: var(--c6); } .b7 { background: var(--c7); }
.bar { display: flex; align-items: center; gap: 10px; margin: 6px 0; } .bar b { width: 28%;
  font-weight: 500; overflow: hidden; text-overflow: ellipsis; } .bar em { font-style: normal; }
.bar div { flex: 1; display: flex; gap: 2px; } .bar div span { height: 16px; border-radius: 2px; }
.tip { position: absolute; top: 34px; pointer-events: none; background: var(--page);
  border: 1px solid var(--rule); border-radius: 6px; padding: 5px 8px; font-size: 12px;
  white-space: pre; font-variant-numeric: tabular-nums; z-index: 1; }
"""

SCRIPT: Final = """
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg");
  const tip = figure.querySelector(".tip"), cross = svg.querySelector(".cross");
  const nearest = (places, at) => {
    let low = 0, high = places.length - 1;
    while (low < high) { const middle = (low + high) >> 1;
      if (places[middle] < at) { low = middle + 1; } else { high = middle; } }
    return low > 0 && at - places[low - 1] < places[low] - at ? low - 1 : low;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * chart.width;
    const lines = chart.lines.filter((line) => line.at.length);
    if (!lines.length) { return; }
    const first = nearest(lines[0].at, at), words = [chart.x + ": " + lines[0].x[first]];
    for (const line of lines) {
      words.push((lines.length > 1 ? line.name + ": " : "") + line.y[nearest(line.at, at)]);
    }
    tip.textContent = words.join("\\n");
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX - box.left + 24, box.width - tip.offsetWidth) + "px";
    cross.setAttribute("x1", at); cross.setAttribute("x2", at); cross.style.visibility = "visible";
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cross.style.visibility = "hidden"; });
}
"""
