"""Reading scenario files, as factory files are read: all that is wrong at once, with line, field and fix.

Which stages and GPUs there are is known to whoever loads; names are brought along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tokenmill.spec.documents import read_document, read_text
from tokenmill.spec.nodes import Reader
from tokenmill.spec.problems import did_you_mean, one_of, repeated
from tokenmill.spec.scenario import Scenario


def load_scenario(
    path: Path, *, stages: Mapping[str, int], is_known: Callable[[str], bool], known: Iterable[str]
) -> Scenario:
    """Read a scenario file. ``stages``: how many workers each of the factory's stages begins with;
    ``is_known``, ``known``: the catalogue's GPUs. Raises ConfigError: FactoryError has all that is wrong."""
    text = read_text(path, "scenario file")
    return parse_scenario(text, str(path), stages=stages, is_known=is_known, known=known)


def parse_scenario(
    text: str,
    source: str,
    *,
    stages: Mapping[str, int],
    is_known: Callable[[str], bool],
    known: Iterable[str],
) -> Scenario:
    """Read a scenario from YAML or JSON; ``source`` names it in messages. Raises FactoryError."""

    def check(scenario: Scenario, reader: Reader) -> None:
        # Where an entry of a list could not be read, those behind it are counted otherwise than in the file.
        if not any("[" in problem.path for problem in reader.problems):
            _check(scenario, reader, stages)
            _check_prices(scenario, reader, is_known, list(known))

    return read_document(text, source, Scenario, check, empty="metadata, and what is to happen")


def _check(scenario: Scenario, reader: Reader, stages: Mapping[str, int]) -> None:
    most = dict(stages)
    for index, scaling in enumerate(scenario.events.scaling):
        if _check_stage(scaling.stage, reader, f"events.scaling[{index}].stage", stages):
            most[scaling.stage] = max(most[scaling.stage], scaling.workers)
    for name in scenario.stages:
        _check_stage(name, reader, f"stages.{name}", stages)
    for index, failure in enumerate(scenario.events.failures):
        _check_worker(failure.stage, failure.worker, reader, f"events.failures[{index}]", most)
    for index, straggler in enumerate(scenario.events.stragglers):
        path = f"events.stragglers[{index}]"
        _check_worker(straggler.stage, straggler.worker, reader, path, most)
        _check_span(straggler.at_s, straggler.until_s, reader, f"{path}.until_s")
    for index, slow in enumerate(scenario.events.slow_links):
        _check_span(slow.at_s, slow.until_s, reader, f"events.slow_links[{index}].until_s")
    if scenario.end_at_s:
        _check_span(scenario.start_at_s, scenario.end_at_s, reader, "end_at_s")
    _check_classes(scenario, reader)


def _check_stage(name: str, reader: Reader, path: str, stages: Mapping[str, int]) -> bool:
    if name in stages:
        return True
    hint = did_you_mean(name, stages) or (f" It has {one_of(stages)}." if stages else "")
    reader.blame_field(path, f'the factory has no stage "{name}".{hint}')
    return False


def _check_worker(stage: str, worker: int, reader: Reader, path: str, most: Mapping[str, int]) -> None:
    if _check_stage(stage, reader, f"{path}.stage", most) and worker >= most[stage]:
        what = f"{stage} has never more than {most[stage]} workers, numbered from 0"
        reader.blame_field(f"{path}.worker", f"is {worker}; {what}")


def _check_span(start_s: float, end_s: float, reader: Reader, path: str) -> None:
    if end_s <= start_s:
        reader.blame_field(path, f"is {end_s:g}; it must be later than {start_s:g}")


def _check_classes(scenario: Scenario, reader: Reader) -> None:
    for index, name, first in repeated(each.name for each in scenario.classes):
        message = f'"{name}" is also the name of classes[{first}]; choose another'
        reader.blame_field(f"classes[{index}].name", message)
    total = sum(each.share for each in scenario.classes)
    if total > 1 + 1e-9:
        reader.blame_field("classes", f"their shares are {total:g} together; at most 1")


def _check_prices(
    scenario: Scenario, reader: Reader, is_known: Callable[[str], bool], known: list[str]
) -> None:
    for name in scenario.prices:
        if not is_known(name):
            hint = did_you_mean(name, known) or f" Known are {one_of(known)}."
            reader.blame_field(f"prices.{name}", f'"{name}" is not in the catalogue.{hint}')
