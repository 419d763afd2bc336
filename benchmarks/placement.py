"""How long plans take, and how far the linear program is from trying all: from a node to a thousand GPUs.

Step times are the roofline's, so that it runs anywhere. Each fleet is planned for a rate at a service
level, the plants it is compared with included. For small fleets both solvers solve the same problem.

python -m benchmarks.placement
"""

from __future__ import annotations

import time

from benchmarks.machine import machine, write_result
from tokenmill.decide.fleet import enumeration, milp
from tokenmill.decide.fleet.candidates import find_candidates
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.options import Ask, board_of
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.fleet.problem import undominated
from tokenmill.decide.fleet.stock import inventory_of_one
from tokenmill.decide.fleet.workload import steady
from tokenmill.decide.perf.efficiencies import EFFICIENCIES
from tokenmill.decide.perf.estimates import RooflineSource
from tokenmill.profiles.models import load_shape

MODEL = "nvidia/Llama-3.1-70B-Instruct-FP8"
FLEETS: list[tuple[dict[str, int], float]] = [
    ({"H100": 8}, 5.0),
    ({"H100": 16}, 12.0),
    ({"H100": 8, "A100": 8, "L40S": 8}, 9.0),
    ({"H100": 64, "H200": 64, "A100": 64}, 100.0),
    ({"H100": 160, "A100": 200, "L40S": 240, "H200": 120, "B200": 80, "MI300X": 200}, 200.0),
]


def inventory_of(fleet: dict[str, int]) -> Inventory:
    """Put a fleet together from usual servers."""
    groups = [
        group
        for gpu, number in fleet.items()
        for group in inventory_of_one(CATALOGUE.gpu(gpu), number).groups
    ]
    return Inventory(groups, {})


def plan_one(fleet: dict[str, int], rate: float) -> dict[str, object]:
    """Plan for one fleet; say what came out and how long it took."""
    inventory = inventory_of(fleet)
    start, start_cpu = time.perf_counter(), time.process_time()
    candidates, unfit = find_candidates(
        load_shape(MODEL), inventory, RooflineSource(EFFICIENCIES), longest=4000
    )
    ask = Ask(
        workload=steady(3000, 150),
        promise=Promise(ttft_ms=1000, itl_ms=30, percentile=90),
        rate_per_s=rate,
    )
    plan = place(ask, candidates, inventory, unfit)
    result: dict[str, object] = {
        "gpus": inventory.gpus,
        "types": len(fleet),
        "requests_per_s": rate,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - start_cpu, 2),
        "best": plan.best.words if plan.best else None,
        "dollars_per_hour": round(plan.best.dollars_per_hour, 2) if plan.best else None,
        "compared_with": len(plan.runners_up),
    }
    board = board_of(ask, candidates, inventory)
    problem = board.only(undominated(board.problem)).problem
    if enumeration.size(problem, most=200_000) <= 200_000:
        tried, solved = enumeration.cheapest(problem, rate), milp.cheapest(problem, rate, gap=0.0)
        if tried is not None and solved is not None:
            result["cost_over_trying_all"] = round(solved.cost / tried.cost - 1, 6)
    return result


def main() -> None:
    """Plan for all fleets and write what was measured."""
    about = machine()
    rows = [plan_one(fleet, rate) for fleet, rate in FLEETS]
    for row in rows:
        over = row.get("cost_over_trying_all")
        print(f"{row['gpus']:5} GPUs of {row['types']} types, {row['requests_per_s']:5} requests/s:")
        print(f"      {row['seconds']} s ({row['cpu_seconds']} s of CPU); ${row['dollars_per_hour']}/h")
        print(f"      {row['best']}")
        if over is not None:
            print(f"      linear program over trying all: {over:+.2%}")
    print("written:", write_result("placement", {"plans": rows}, about))


if __name__ == "__main__":
    main()
