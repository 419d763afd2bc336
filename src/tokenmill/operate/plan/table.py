"""A plan as people read it: the plant's stages side by side, what it does and costs, those that lose and
why, and what stands in the way. Fits 80 columns as long as there are few stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.options import Ask
from tokenmill.decide.fleet.plans import Plan, PlantPlan, StagePlan, parallel_words, role_words
from tokenmill.operate.plan.demand import Demand

NOTHING = "-"

_LEAST = {"cost": "cost", "gpus": "GPUs", "power": "power"}


def show(
    name: str, ask: Ask, demand: Demand, inventory: Inventory, plan: Plan, *, written: Path | None
) -> None:
    """Print everything."""
    console = Console(highlight=False)
    console.print(asked(name, ask, demand, inventory), markup=False)
    console.print()
    if plan.best is None:
        _refusal(console, plan)
    else:
        console.print(stages_table(ask, plan.best))
        console.print(summary(ask, plan.best), markup=False)
        console.print()
        console.print(plants_table(ask, plan))
        for words in verdicts(plan):
            console.print(words, markup=False)
        if written is not None:
            console.print(f"\nwritten: {written}", markup=False)
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)


def asked(name: str, ask: Ask, demand: Demand, inventory: Inventory) -> str:
    """Return what is asked for, in a few lines."""
    load, promise = ask.workload, ask.promise
    rate = "as many requests/s as possible" if ask.rate_per_s is None else f"{ask.rate_per_s:.4g} requests/s"
    cached = f" ({load.cached_tokens:.0f} cached)" if load.cached_tokens else ""
    groups = ", ".join(f"{group.gpus} {group.gpu.name}" for group in inventory.groups)
    return (
        f"{name}: {rate} of {load.prompt_tokens:.0f}{cached} tokens in, {load.output_tokens:.0f} out\n"
        f"from:  {demand.words}\n"
        f"level: {promise.percentile:g}% within {promise.ttft_ms:g} ms to the first token and "
        f"{promise.itl_ms:g} ms between tokens\n"
        f"fleet: {groups}; least {_LEAST[ask.objective]}"
    )


def stages_table(ask: Ask, plant: PlantPlan) -> Table:
    """Return the plant: a column for each stage, one for the whole."""
    table = Table(box=None, pad_edge=False, title=f"best: {plant.kind}", title_justify="left")
    table.add_column("")
    for stage in plant.stages:
        table.add_column(escape(stage.name), justify="right", overflow="fold")
    table.add_column("plant", justify="right")
    for what, of_stage, of_plant in _rows(ask):
        cells = [of_stage(stage) for stage in plant.stages]
        table.add_row(what, *map(escape, [*cells, of_plant(plant)]))
    return table


_Row = tuple[str, Callable[[StagePlan], str], Callable[[PlantPlan], str]]


def _rows(ask: Ask) -> list[_Row]:
    share = f"p{ask.promise.percentile:g}"

    def nothing(plant: PlantPlan) -> str:  # noqa: ARG001 -- as the others
        return ""

    return [
        ("does", role_words, nothing),
        ("GPU", lambda each: f"{each.gpu}@{each.zone}" if each.zone else each.gpu, nothing),
        ("each replica", lambda each: parallel_words(each.parallel), nothing),
        ("replicas", lambda each: f"{each.replicas}", nothing),
        ("GPUs", lambda each: f"{each.gpus}", lambda plant: f"{plant.gpus}"),
        ("requests/s", lambda each: f"{each.rate_per_s:.3g}", lambda plant: f"{plant.rate_per_s:.3g}"),
        (f"TTFT {share}, ms", lambda each: _number(each.ttft_ms, 0), lambda plant: _number(plant.ttft_ms, 0)),
        (f"ITL {share}, ms", lambda each: _number(each.itl_ms, 1), lambda plant: _number(plant.itl_ms, 1)),
        ("utilization", lambda each: f"{each.busy:.0%}", nothing),
        (
            "of its most",
            lambda each: f"{each.load:.0%} ({each.binding})",
            lambda plant: f"{plant.rate_per_s / plant.most_rate_per_s:.0%}",
        ),
        ("prefill tokens a step", lambda each: f"{each.chunk_tokens}" if each.ttft_ms else NOTHING, nothing),
        ("most sequences", lambda each: f"{each.max_sequences}", nothing),
        (
            "tokens/s a GPU",
            lambda each: f"{each.tokens_per_s_per_gpu:.0f}",
            lambda plant: f"{plant.tokens_per_s_per_gpu:.0f}",
        ),
        ("$/h", lambda each: f"{each.dollars_per_hour:.2f}", lambda plant: f"{plant.dollars_per_hour:.2f}"),
        ("kW", lambda each: f"{each.power_w / 1000:.1f}", lambda plant: f"{plant.power_w / 1000:.1f}"),
    ]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def summary(ask: Ask, plant: PlantPlan) -> str:
    """Return what the whole plant promises and what its tokens cost."""
    prices = plant.dollars_per_million
    million = ", ".join(
        f"${price:.3g} {what}"
        for what, price in (("input", prices.input), ("cached", prices.cached), ("output", prices.output))
        if price is not None
    )
    most, share = plant.most_rate_per_s, ask.promise.percentile
    lines = [
        f"{plant.within:.1%} of requests within both limits; at most {most:.3g} requests/s at p{share:g}",
        f"a million tokens: {million}",
    ]
    for gpu, (origin, error) in sorted(
        {s.gpu: (s.times_from, s.expected_error) for s in plant.stages}.items()
    ):
        off = f", may be off by {error:.0%}" if error else ""
        lines.append(f"step times of {gpu}: {origin}{off}")
    between: dict[tuple[str, str], float] = {}
    for each in plant.handing:
        zones = (each.sender.partition("/")[0], each.receiver.partition("/")[0])
        between[zones] = between.get(zones, 0.0) + each.per_s
    lines.extend(
        f"caches from {start or 'the rest'} to {end or 'the rest'}: {per_s:.3g} a second"
        for (start, end), per_s in sorted(between.items())
        if start != end
    )
    return "\n".join(lines)


def plants_table(ask: Ask, plan: Plan) -> Table:
    """Return the best plant and those that lose, at the same service level."""
    table = Table(box=None, pad_edge=False, title="at the same service level", title_justify="left")
    for column in ("plant", "req/s", "GPUs", "$/h", "TTFT", "ITL", "tok/s/GPU", "$/M in", "$/M out"):
        table.add_column(column, justify="left" if column == "plant" else "right")
    assert plan.best is not None
    rows: list[tuple[str, PlantPlan | None]] = [(plan.best.kind, plan.best)]
    rows += [(each.what, each.plant) for each in plan.runners_up]
    for what, plant in rows:
        if plant is None:
            table.add_row(escape(what), *[NOTHING] * 8)
            continue
        rate = plant.most_rate_per_s if ask.rate_per_s is None else plant.rate_per_s
        cells = [
            what,
            f"{rate:.3g}",
            f"{plant.gpus}",
            f"{plant.dollars_per_hour:.2f}",
            f"{plant.ttft_ms:.0f}",
            f"{plant.itl_ms:.1f}",
            f"{plant.tokens_per_s_per_gpu:.0f}",
            _number(plant.dollars_per_million.input, 3),
            _number(plant.dollars_per_million.output, 2),
        ]
        table.add_row(*map(escape, cells))
    return table


def verdicts(plan: Plan) -> list[str]:
    """Return what the plants are, and why each of the others loses."""
    assert plan.best is not None
    lines = [f"{plan.best.kind}: {plan.best.words}"]
    for each in plan.runners_up:
        lines.append(f"{each.what}: {each.plant.words if each.plant else 'none'}")
        lines.append(f"  {each.why}")
    return lines


def _refusal(console: Console, plan: Plan) -> None:
    console.print("this cannot be met", style="bold red")
    for words in plan.binding:
        console.print(f"  in the way: {words}", markup=False)
    for nearest in plan.nearest:
        console.print(f"  would do:   {nearest.words}", markup=False)
