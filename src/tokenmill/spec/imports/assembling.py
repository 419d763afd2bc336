"""From what was read of a deployment to a factory: roles, names, models, GPUs. Knows no kind of file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tokenmill.protocol.ids import Role
from tokenmill.spec.factory import Factory, Metadata, Model
from tokenmill.spec.front import Frontend, Router
from tokenmill.spec.imports.option_files import OptionFiles
from tokenmill.spec.imports.options import Drafted, draft
from tokenmill.spec.imports.shell import Command
from tokenmill.spec.imports.tree import Item
from tokenmill.spec.stage import Parallel, Stage

DEFAULT_SEQUENCES: Final = 256
"""What vLLM takes into a batch where nobody says; a stage's own default is for smaller engines."""

_MODULES: Final = {
    "dynamo.vllm": "vllm",
    "dynamo.sglang": "sglang",
    "dynamo.trtllm": "trtllm",
    "dynamo.mocker": "sim",
    "vllm.entrypoints.openai.api_server": "vllm",
    "vllm.entrypoints.cli.main": "vllm",
    "sglang.launch_server": "sglang",
}
_PROGRAMS: Final = {"trtllm-serve": "trtllm"}

_HUB_FOLDER: Final = re.compile(r"(?:.*/)?models--([^/]+?)--([^/]+)(?:/.*)?")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_LONGEST_NAME: Final = 63


@dataclass
class Engine:
    """One group of equal workers as it was found.

    ``role``: as its place tells, "" where it does not. ``gpus``: asked for by one pod. ``nodes``: machines
    that one engine spans. ``at``: where losses of it are noted.
    """

    name: str
    kind: str
    at: Item
    options: Drafted
    role: str = ""
    replicas: int = 1
    gpus: int = 0
    gpu: str = ""
    nodes: int = 1
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Found:
    """All of one deployment."""

    name: str
    at: Item
    engines: list[Engine] = field(default_factory=list)
    frontend: Frontend = field(default_factory=Frontend)
    router: Router = field(default_factory=Router)
    files: OptionFiles = field(default_factory=OptionFiles)


def engine_of(command: Command) -> tuple[str, list[str]] | None:
    """Return which engine a command starts and the words behind its program; None: none that is known."""
    words = command.words
    for index, word in enumerate(words):
        if word == "-m" and index + 1 < len(words) and words[index + 1] in _MODULES:
            return _MODULES[words[index + 1]], [rest for rest in words[index + 2 :] if rest != "serve"]
        program = word.rpartition("/")[2]
        if program == "vllm" and words[index + 1 : index + 2] == ["serve"]:
            return "vllm", words[index + 2 :]
        if program in _PROGRAMS:
            return _PROGRAMS[program], words[index + 1 :]
    return None


def drafted(kind: str, words: list[str], at: Item, files: OptionFiles) -> Drafted:
    """Read an engine's options and note those that are lost."""
    options = draft(kind, words, files.options)
    for name, why in options.losses:
        at.note(why, at=f" --{name.replace('_', '-')}")
    return options


def assemble(found: Found) -> Factory | None:
    """Return the factory; None, with a problem noted, where there is no engine."""
    if not found.engines:
        found.at.blame("nothing here runs an engine that Tokenmill knows: vllm, sglang or trtllm")
        return None
    models = [_model(engine) for engine in found.engines]
    kinds = list(dict.fromkeys(models))
    if len(kinds) > 1:
        models = [msgspec.structs.replace(model, name=model.name or model.path) for model in models]
        kinds = list(dict.fromkeys(models))
    apart = {models[i] for i, engine in enumerate(found.engines) if _role_alone(engine) == "prefill"}
    for engine, model in zip(found.engines, models, strict=True):
        partners = [other for other, its in zip(found.engines, models, strict=True) if its == model]
        if all(_role_alone(other) == "prefill" for other in partners):
            engine.at.blame("prefill workers alone make no answers; their decode workers are elsewhere")
            return None
    names: set[str] = set()
    stages = [
        _stage(engine, split=model in apart, model=model.name if len(kinds) > 1 else "", names=names)
        for engine, model in zip(found.engines, models, strict=True)
    ]
    one = len(kinds) == 1
    return Factory(
        metadata=Metadata(name=plain_name(found.name.lower())),
        model=kinds[0] if one else Model(),
        models=[] if one else kinds,
        frontend=found.frontend,
        router=found.router,
        stages=stages,
    )


def plain_name(name: str) -> str:
    """Return a name as a factory has them: VllmPrefillWorker becomes vllm-prefill-worker."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return re.sub(r"[^a-z0-9]+", "-", apart.lower())[:_LONGEST_NAME].strip("-") or "factory"


def _role_alone(engine: Engine) -> str:
    return engine.options.role or engine.role


def _model(engine: Engine) -> Model:
    path, served = engine.options.model, engine.options.served
    if hub := _HUB_FOLDER.fullmatch(path):
        path = f"{hub[1]}/{hub[2]}"
        engine.at.note(
            f"the model is taken by its hub id, {path}, at whatever revision is downloaded", at=" --model"
        )
    elif path.startswith("/"):
        if _HUB_ID.fullmatch(served):
            engine.at.note(f"{path} is in the container; model.path is {served}", at=" --model")
            path = served
        else:
            engine.at.note(
                f"{path} is in the container; put the checkpoint there, or change it", at=" --model"
            )
    elif not path:
        engine.at.note("the model is not named here; set model.path", at=" --model")
        path = served
    return Model(name="" if served == path else served, path=path)


def _stage(engine: Engine, *, split: bool, model: str, names: set[str]) -> Stage:
    role = _role_alone(engine)
    if role != "prefill":
        role = "decode" if split and engine.options.role != "both" else "both"
    fields = dict(engine.options.fields)
    if engine.kind != "sim" and "max_sequences" not in fields:
        fields["max_sequences"] = DEFAULT_SEQUENCES
        engine.at.note(f"it does not say how many sequences run at once; max_sequences: {DEFAULT_SEQUENCES}")
    return Stage(
        name=_unique(plain_name(engine.name), names),
        model=model,
        role=Role(role),
        replicas=engine.replicas,
        engine=engine.kind,
        gpu=engine.gpu,
        parallel=Parallel() if engine.kind == "sim" else _parallel(engine),
        engine_args=engine.options.engine_args,
        engine_env=engine.environment if engine.kind != "sim" else {},
        **fields,  # type: ignore[arg-type]
    )


def _unique(name: str, names: set[str]) -> str:
    base = "front" if name == "frontend" else name
    found, number = base, 2
    while found in names:
        found, number = f"{base[: _LONGEST_NAME - 4]}-{number}", number + 1
    names.add(found)
    return found


def _parallel(engine: Engine) -> Parallel:
    ranks = dict(engine.options.parallel)
    inside = engine.options.engine_args.get("enable_dp_attention") == "true"
    product = ranks.get("tp", 1) * ranks.get("pp", 1) * (1 if inside else ranks.get("dp", 1))
    if engine.gpus > 1 and product == 1 and engine.kind == "trtllm":
        product = ranks["tp"] = engine.gpus * engine.nodes
        engine.at.note(
            f"its ranks are in a file of the container; parallel: {{tp: {product}}} is a guess by its GPUs"
        )
    elif engine.gpus and product != engine.gpus * engine.nodes:
        asked = engine.gpus * engine.nodes
        engine.at.note(
            f"its options use {product} GPUs of the {asked} that it asks for; the factory gives it {product}"
        )
    if engine.nodes > 1:
        engine.at.note(f"it spans {engine.nodes} machines; a worker launches an engine on one machine")
    if ranks.get("ep") == -1:
        ranks["ep"] = max(1, ranks.get("tp", 1) * ranks.get("dp", 1))
    return Parallel(**{name: max(1, number) for name, number in ranks.items()})
