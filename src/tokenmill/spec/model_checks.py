"""What a factory's models and stages must be together: whose stage is whose, and who hands over to whom.

Exists beside ``checks`` because these rules are about several parts of the file at once. Knows nothing of
YAML.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.protocol.ids import Role
from tokenmill.spec.derive import TEXT_ENGINES, is_text_model, models_of, stages_of
from tokenmill.spec.factory import Factory, Model
from tokenmill.spec.mixes import stages_without_partner
from tokenmill.spec.problems import did_you_mean, one_of, repeated
from tokenmill.spec.stage import Stage

Blame = Callable[[str, str], None]
"""Notes a problem: the field, and what is wrong with it and the fix."""


def check_models(factory: Factory, blame: Blame) -> None:
    """Note what is wrong with models, and with the stages of each."""
    if not _check_names(factory, blame) or not _check_stages_models(factory, blame):
        return
    for index, model in enumerate(models_of(factory)):
        stages = stages_of(factory, model)
        if not stages and factory.models:
            message = f'no stage makes its tokens; give one "model: {model.name}", or remove it'
            blame(f"models[{index}]", message)
        _check_roles(factory, stages, blame)
        _check_speech(factory, stages, blame)
        if model.tool_parser != Model().tool_parser and is_text_model(factory, model):
            path = f"models[{index}]" if factory.models else "model"
            blame(f"{path}.tool_parser", "has no effect on a model whose server reads tool calls; remove it")
    for stage, why in stages_without_partner(factory):
        blame(f"stages[{factory.stages.index(stage)}].engine", why)


def _check_names(factory: Factory, blame: Blame) -> bool:
    """Whether each model can be told from the others."""
    if not factory.models:
        return True
    if factory.model != Model():
        blame("model", "is here beside models; declare all models under models")
        return False
    names = [model.name for model in factory.models]
    twice = list(repeated(names))
    for index, name, first in twice:
        blame(f"models[{index}].name", f'"{name}" is also the name of models[{first}]; choose another')
    nameless = "" in names and len(names) > 1
    if nameless:
        blame(f"models[{names.index('')}].name", "is missing; of several models each needs a name")
    return not twice and not nameless


def _check_stages_models(factory: Factory, blame: Blame) -> bool:
    """Whether each stage names a model that is there."""
    names = [model.name for model in models_of(factory)]
    good = True
    for index, stage in enumerate(factory.stages):
        if stage.model in names or (not stage.model and len(names) == 1):
            continue
        path = f"stages[{index}].model"
        named = [name for name in names if name]
        if not stage.model:
            blame(path, f"is missing; say which of the models it serves: {one_of(named)}")
        elif named:
            hint = did_you_mean(stage.model, named)
            blame(path, f'"{stage.model}" is not the name of a model here: {one_of(named)}.{hint}')
        else:
            blame(path, f'"{stage.model}" is not the name of a model here; remove it, or name the model')
        good = False
    return good


def _check_roles(factory: Factory, stages: list[Stage], blame: Blame) -> None:
    roles = {stage.role for stage in stages}
    for has, lacks in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
        if has in roles and lacks not in roles and Role.BOTH not in roles:
            index = next(i for i, stage in enumerate(factory.stages) if stage.role is has and stage in stages)
            message = f"a {has} stage needs a {lacks} stage beside it; add one, or use role: both"
            blame(f"stages[{index}].role", message)


def _check_speech(factory: Factory, stages: list[Stage], blame: Blame) -> None:
    """Text and token ids do not mix within a model: a request is one or the other."""
    texts = [stage for stage in stages if stage.engine in TEXT_ENGINES]
    for stage in texts:
        path = f"stages[{factory.stages.index(stage)}]"
        if len(texts) < len(stages):
            other = next(each for each in stages if each.engine not in TEXT_ENGINES)
            message = (
                f'engine "{stage.engine}" takes text, and stage {other.name} ({other.engine}) of the same '
                "model takes token ids; make it a model of its own under models"
            )
            blame(f"{path}.engine", message)
        if stage.role is not Role.BOTH:
            blame(f"{path}.role", f'engine "{stage.engine}" hands no KV cache over; use role: both')
        if not stage.attach:
            blame(
                f"{path}.attach",
                f'is missing; engine "{stage.engine}" needs the address of a server, say https://host/v1',
            )
