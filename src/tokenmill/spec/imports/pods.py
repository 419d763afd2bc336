"""What containers and pods say that a factory can take: environment, GPUs, and the program that is started.

Shared by the kinds of files, which all describe pods. Knows no kind of deployment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from tokenmill.spec.imports.shell import UNKNOWN, Command, Script, Unreadable, read_command
from tokenmill.spec.imports.tree import Item

_GPU_KIND: Final = re.compile(r"\b(A100|A10G|A10|A30|B200|B300|GB200|GB300|GH200|H100|H200|L4|L40S|L40)\b")

_GPU_RESOURCES: Final = ("gpu", "nvidia.com/gpu", "amd.com/gpu")

_LAUNCHERS: Final = {"exec", "then", "do", "else", "if", "{", "time", "numactl", "nohup"}
"""Words in front of a program that are not one, or only start another."""

_KUBERNETES: Final = "is how Kubernetes runs it; a factory runs processes on a machine"

_REASONS: Final = {
    "image": "workers run what is installed where they run; name it by engine_python or engine_command",
    "imagePullPolicy": _KUBERNETES,
    "imagePullSecrets": _KUBERNETES,
    "resources": "a process takes what the machine has; only GPUs are dealt out",
    "volumes": "files are where they are on the machine; name the checkpoint's folder in model.path",
    "volumeMounts": "files are where they are on the machine; name the checkpoint's folder in model.path",
    "pvcs": "files are where they are on the machine; name the checkpoint's folder in model.path",
    "pvc": "files are where they are on the machine; name the checkpoint's folder in model.path",
    "sharedMemory": "a process takes what the machine has",
    "sharedMemorySize": "a process takes what the machine has",
    "envFromSecret": "it is a secret; set its variables where you bring the factory up",
    "envFrom": "its variables are in the cluster; set them where you bring the factory up",
    "affinity": "a factory's workers are on one machine",
    "nodeSelector": "a factory's workers are on one machine",
    "tolerations": "a factory's workers are on one machine",
    "livenessProbe": "workers are watched by their supervisor",
    "readinessProbe": "workers say by themselves when they are ready",
    "startupProbe": "workers say by themselves when they are ready",
    "workingDir": "is a path in the container",
    "initContainers": "only the engine's own container is read",
    "securityContext": _KUBERNETES,
    "runtimeClassName": _KUBERNETES,
    "schedulerName": _KUBERNETES,
    "serviceAccountName": _KUBERNETES,
    "terminationGracePeriodSeconds": "see drain_timeout_s",
    "metadata": _KUBERNETES,
    "extraPodMetadata": _KUBERNETES,
    "ports": "the worker chooses its ports; the frontend's is frontend.port",
    "route": "is of a gateway; the frontend is the way in",
    "gateway": "is of a gateway; the frontend is the way in",
    "ingress": "is of a gateway; the frontend is the way in",
    "scalingAdapter": "a factory keeps the replicas that it declares",
    "multinode": "a worker launches an engine on one machine",
    "extraPodSpec": _KUBERNETES,
    "podTemplate": _KUBERNETES,
    "template": _KUBERNETES,
    "annotations": _KUBERNETES,
    "labels": _KUBERNETES,
    "namespace": _KUBERNETES,
}

ABSENT: Final = "has no counterpart in a factory file"


@dataclass
class Environment:
    """Variables with values, and where each stands."""

    values: dict[str, str] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)


def why_lost(item: Item) -> str:
    """Say why a value has no place in a factory."""
    if re.search(r"\.containers\[\d+\]$", item.path):
        return "only the engine's own container is read"
    names = [name.strip('"') for name in re.split(r"\.|\[\d+\]", item.path) if name]
    return next((_REASONS[name] for name in reversed(names) if name in _REASONS), ABSENT)


def read_environment(*lists: Item | None) -> Environment:
    """Read lists of {name, value}; of one name the last wins."""
    environment = Environment()
    for listed in lists:
        for item in listed.items() if listed is not None else ():
            name, value = item.get("name"), item.get("value")
            if name is None:
                item.blame("needs a name")
            elif value is not None:
                environment.values[name.text()] = value.text()
                environment.items[name.text()] = item
            elif source := item.get("valueFrom"):
                name.take()
                secret = source.get("secretKeyRef") or source.get("configMapKeyRef")
                item.lose(
                    "its value is in the cluster; set it where you bring the factory up"
                    if secret
                    else "its value is known only in a pod"
                )
            else:
                item.take()
    return environment


def engine_environment(environment: Environment, used: set[str]) -> dict[str, str]:
    """Return the variables that an engine should have; the others are lost, but for ``used``: they were only
    for the command."""
    kept: dict[str, str] = {}
    for name, value in environment.values.items():
        if why := _why_not(name, value):
            if name not in used:
                environment.items[name].lose(f"{name} {why}")
        elif name not in used:
            kept[name] = value
    return kept


def _why_not(name: str, value: str) -> str:
    if name.startswith(("DYN_", "ETCD_", "NATS_")):
        return "is Dynamo's own"
    if name.startswith("KSERVE_"):
        return "is KServe's own"
    if name.startswith("VLLM_NIXL_SIDE_CHANNEL") or name.endswith("_VISIBLE_DEVICES"):
        return "is set by the worker"
    if any(word in name for word in ("TOKEN", "SECRET", "PASSWORD", "ACCESS_KEY")):
        return "looks like a secret; set it where you bring the factory up"
    if value.startswith("/"):
        return "is a path in the container; set it where you bring the factory up, if the machine has it"
    if UNKNOWN in value or "$(" in value or "{{" in value or "${" in value:
        return "has a value that is known only in a pod"
    return ""


def read_gpus(resources: Item | None) -> int:
    """Return how many GPUs a container asks for; 0: it does not say."""
    for kind in ("limits", "requests"):
        for name in _GPU_RESOURCES:
            found = resources.get(kind, name) if resources is not None else None
            if found is not None:
                for other in ("limits", "requests"):
                    if same := resources.get(other, name) if resources is not None else None:
                        same.take()
                return found.number()
    return 0


def gpu_kind(*places: Item | None) -> str:
    """Return the kind of GPU that a selector or an affinity names, "" where none does. Reads the selector."""
    for place in places:
        for item in _texts(place) if place is not None else ():
            if found := _GPU_KIND.search(str(item.value).upper()):
                item.take()
                return found[1]
    return ""


def _texts(item: Item) -> list[Item]:
    if isinstance(item.value, str):
        return [item]
    children = list(item.value.values()) if isinstance(item.value, dict) else item.value or []
    return [text for child in children for text in _texts(child)]


def read_container(container: Item, environment: Environment) -> Script | None:
    """Return what a container starts; None where it says nothing, or cannot be read, which is a loss then."""
    command, arguments = container.get("command"), container.get("args")
    if command is None and arguments is None:
        return None
    try:
        return read_command(
            command.texts() if command is not None else [],
            arguments.texts() if arguments is not None else [],
            environment.values,
        )
    except Unreadable as error:
        (arguments or container).lose(f"the script cannot be read: {error}")
        return None


def program_of(command: Command) -> list[str]:
    """Return a command from its program on: "exec", "numactl -N0" and the like left out; empty: none."""
    words = list(command.words)
    while words and (words[0] in _LAUNCHERS or (words[0].startswith("-") and words != command.words)):
        words.pop(0)
    return words
