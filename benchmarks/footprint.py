"""What the base install weighs, and what a frontend takes of memory.

Builds the wheel, installs it without extras into a fresh virtual environment, measures site-packages, then
serves the sim engine from that environment and reads the frontend's resident memory, idle and after streamed
requests.

    python -m benchmarks.footprint [--requests 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.factories import free_port, wait_ready
from benchmarks.machine import machine, write_result
from benchmarks.open_loop import Arrival, Shape, run

ROOT = Path(__file__).parent.parent
LIMIT_INSTALL_MB = 120
LIMIT_FRONTEND_MB = 100


def folder_mb(folder: Path) -> float:
    """Sum the sizes of all files below a folder, in MB of 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def install(folder: Path) -> tuple[Path, dict[str, float]]:
    """Install the base package; returns its Python and megabytes by top-level folder, pip left out."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    subprocess.run([str(python), "-m", "compileall", "-q", str(site)], check=False)
    skipped = ("pip", "setuptools")
    weights = {
        path.name: round(folder_mb(path), 1)
        for path in site.iterdir()
        if path.is_dir() and not path.name.startswith(skipped)
    }
    return python, dict(sorted(weights.items(), key=lambda item: -item[1]))


def frontend_memory(python: Path, requests: int) -> dict[str, float]:
    """Serve with the sim engine; resident MB of the frontend, idle and after streams, 64 at once."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as state:
        process = subprocess.Popen(
            [str(python), "-m", "tokenmill", "serve", "--engine", "sim", "--port", str(port)],
            env={**os.environ, "TOKENMILL_STATE_DIR": state},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_ready(port, process)
            children = psutil.Process(process.pid).children(recursive=True)
            (frontend,) = [child for child in children if "frontend" in child.cmdline()]
            idle_mb = frontend.memory_info().rss / 1e6
            shape = Shape("stream", 200, 64, 1.0)
            prompt = list(range(300, 500))
            for _ in range(requests // 64):
                batch = [Arrival(0.0, shape, prompt, seed) for seed in range(64)]
                asyncio.run(run("127.0.0.1", port, "tokenmill-mini", batch, 60))
            used_mb = frontend.memory_info().rss / 1e6
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return {"idle_mb": round(idle_mb, 1), "after_mb": round(used_mb, 1), "requests": requests}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        python, weights = install(Path(name) / "venv")
        total_mb = round(sum(weights.values()), 1)
        memory = frontend_memory(python, arguments.requests)
    print(f"base install {total_mb} MB (limit {LIMIT_INSTALL_MB}); largest: {list(weights.items())[:8]}")
    print(f"frontend {memory} (limit {LIMIT_FRONTEND_MB})")
    result = {
        "install_mb": total_mb,
        "install_limit_mb": LIMIT_INSTALL_MB,
        "by_folder_mb": {name: mb for name, mb in weights.items() if mb >= 0.5},
        "frontend": memory,
        "frontend_limit_mb": LIMIT_FRONTEND_MB,
    }
    print(f"written to {write_result('footprint', result, about)}")


if __name__ == "__main__":
    main()
