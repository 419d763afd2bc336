"""Pictures of what ``benchmarks.when_disaggregation_pays`` found, as SVG. Needs ``tokenmill[plot]``.

python -m benchmarks.when_disaggregation_pictures docs/pictures
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

_KINDS = {"aggregated": "tab:blue", "disaggregated": "tab:orange", "mixed": "tab:green"}


def draw(folder: Path) -> None:
    """Draw all results that are there."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tokenmill", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "levels": [_ratios, _rates],
        "knee": [_knee],
    }
    for part, drawings in pictures.items():
        path = RESULTS / f"when_disaggregation_pays_{part}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            for drawing in drawings:
                drawing(result, folder)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
    path.write_text(text + "\n")
    print("drawn:", path)


def _ratios(result: dict[str, Any], folder: Path) -> None:
    """Disaggregated over aggregated, by both limits, for one node and two."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    norm = TwoSlopeNorm(1.0, vmin=0.5, vmax=3.0)
    for axes, gpus in zip(figure.subplots(1, 2), (8, 16), strict=True):
        cells = result[f"{gpus}_h100"]
        ttfts, itls = (sorted({cell[name] for cell in cells}) for name in ("ttft_ms", "itl_ms"))
        for cell in cells:
            x, y = itls.index(cell["itl_ms"]), ttfts.index(cell["ttft_ms"])
            share = cell["disaggregated_over_aggregated"]
            color = "lightgray"
            if share is not None:
                color = _color(norm(min(3.0, share)))
            axes.add_patch(_square(x, y, color))
            axes.text(x, y, "-" if share is None else f"{share:.2f}", ha="center", va="center")
        axes.set_xlim(-0.5, len(itls) - 0.5)
        axes.set_ylim(-0.5, len(ttfts) - 0.5)
        axes.set_xticks(range(len(itls)), [f"{value:g}" for value in itls])
        axes.set_yticks(range(len(ttfts)), [f"{value:g}" for value in ttfts])
        axes.set_xlabel("time between tokens, ms")
        axes.set_ylabel("time to first token, ms")
        axes.set_title(f"{gpus} H100")
    figure.suptitle("Llama 70B FP8, 3,000 in / 150 out: disaggregated over aggregated, tokens/s a GPU")
    _save(figure, folder / "disaggregated-over-aggregated.svg")


def _square(x: int, y: int, color: str | tuple[float, ...]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white")


def _color(place: float) -> tuple[float, ...]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["RdYlGn"](0.15 + 0.7 * place)
    return red, green, blue


def _rates(result: dict[str, Any], folder: Path) -> None:
    """Tokens a second and GPU of each kind, by the time between tokens, at 1,000 ms to the first one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    for axes, gpus in zip(figure.subplots(1, 2, sharey=True), (8, 16), strict=True):
        cells = [cell for cell in result[f"{gpus}_h100"] if cell["ttft_ms"] == 1000]
        for kind, color in _KINDS.items():
            points = [
                (cell["itl_ms"], cell[kind]["tokens_per_s_per_fleet_gpu"]) for cell in cells if cell[kind]
            ]
            axes.plot(*zip(*points, strict=True), ".-", color=color, label=kind)
        axes.set_xscale("log")
        axes.set_xticks([10, 15, 20, 30, 40, 60, 100], ["10", "15", "20", "30", "40", "60", "100"])
        axes.set_xlabel("time between tokens, ms")
        axes.set_title(f"{gpus} H100, 1,000 ms to the first token, p90")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.axes[0].set_ylabel("tokens/s a GPU")
    _save(figure, folder / "tokens-by-level.svg")


def _knee(result: dict[str, Any], folder: Path) -> None:
    """Time a token of one prompt, by its length, for each engine's kernels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for engine, color in zip(result["engines"], _KINDS.values(), strict=False):
        points = {int(tokens): value for tokens, value in engine["one_prompt_us_a_token"].items()}
        axes.plot(list(points), list(points.values()), ".-", color=color, label=engine["engine"])
        axes.axvline(engine["saturates_at_tokens"], color=color, linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = [128, 512, 1024, 2048, 4096, 8192, 32768]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in the step (one prompt); dotted: saturates")
    axes.set_ylabel("us a token")
    axes.set_title("Llama 3.3 70B NVFP4 on one B200, prefill")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    _save(figure, folder / "prefill-on-b200.svg")


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
