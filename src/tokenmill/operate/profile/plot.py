"""The picture of a profile: what was measured, what was fitted, and the knee. Needs the extra ``plot``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tokenmill.decide.perf.profile import Measurement, Profile
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import ConfigError


def require() -> None:
    """Raise ConfigError with the fix where the extra is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("plot: needs the package matplotlib: pip install 'tokenmill[plot]'", param="plot")


def draw(profile: Profile, path: Path) -> None:
    """Write the picture. Raises ConfigError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - the extra, slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    prefill, decode = figure.subplots(1, 2)
    _draw_prefill(prefill, profile)
    _draw_decode(decode, profile)
    figure.suptitle(f"{profile.model} on {profile.engine}, {profile.machine.gpu or profile.machine.cpu}")
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise ConfigError(f"plot: {path} cannot be written: {error.strerror}", param="plot") from None


def _draw_prefill(axes: Any, profile: Profile) -> None:
    times = TableStepTime(profile.table)
    prompts = [each for each in profile.measurements if each.new_tokens and not each.sequences]
    _draw_points(axes, prompts, [each.new_tokens for each in prompts])
    tokens = sorted({each.new_tokens for each in prompts})
    axes.plot(tokens, [times.prefill_ms(n, n * (n + 1) / 2) for n in tokens], label="fit, one prompt")
    knee = profile.knee
    axes.axvspan(knee.low, max(knee.high, knee.low * 1.01), alpha=0.25, color="tab:orange")
    axes.axvline(knee.tokens, color="tab:orange", label=f"saturates: {knee.tokens} tokens")
    _dress(axes, "tokens in the prefill step", "prefill step, ms")


def _draw_decode(axes: Any, profile: Profile) -> None:
    times = TableStepTime(profile.table)
    decodes = [each for each in profile.measurements if each.sequences and not each.new_tokens]
    _draw_points(axes, decodes, [each.sequences for each in decodes])
    batches = sorted({each.sequences for each in decodes})
    contexts = sorted(each.decode_context / each.sequences for each in decodes)
    for context in sorted({contexts[0], contexts[-1]}):
        label = f"fit, context {context:.0f}"
        axes.plot(batches, [times.decode_ms(b, b * context) for b in batches], label=label)
    _dress(axes, "sequences in the decode step", "decode step, ms")


def _draw_points(axes: Any, measurements: list[Measurement], places: list[float]) -> None:
    middle = [each.step_ms for each in measurements]
    spread = [
        [max(0.0, each.step_ms - each.low_ms) for each in measurements],
        [max(0.0, each.high_ms - each.step_ms) for each in measurements],
    ]
    axes.errorbar(places, middle, yerr=spread, fmt=".", color="gray", label="measured, middle 80 %")


def _dress(axes: Any, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
