"""Builds the backend: `python3 build.py` leaves target/python-backend.wasm.

Everything it needs beside the interface in wit/ goes into a virtual environment under target/.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
INTERFACE = HERE.parents[1] / "wit" / "storage-0.1.0"
TARGET = HERE / "target"
COMPONENT = TARGET / "python-backend.wasm"


def main() -> None:
    environment = TARGET / "venv"
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    if not (environment / "installed").exists():
        venv.create(environment, clear=True, with_pip=True)
    requirements = HERE / "requirements.txt"
    installed = environment / "installed"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements)
        installed.write_text(requirements.read_text())
    # The new component takes the place of the old one in one step, since a host may be reading it.
    unfinished = COMPONENT.with_suffix(".unfinished")
    run(
        programs / "componentize-py", "--quiet", "-d", INTERFACE, "-w", "backend",
        "componentize", "app", "-p", HERE / "src", "-o", unfinished,
    )  # fmt: skip
    unfinished.replace(COMPONENT)
    print(COMPONENT)


def run(*command: object) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"build.py: {error}")


if __name__ == "__main__":
    main()
