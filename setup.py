"""What pyproject.toml can't say: the small checkpoint in weights/ goes into the package as vadcli/weights/lavida-tiny."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODEL = Path("weights") / "lavida-tiny"


class BuildWithWeights(build_py):
    """Also copies the checkpoint, where there is one."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if MODEL.is_dir() and not self.editable_mode:
            shutil.copytree(MODEL, Path(self.build_lib) / "vadcli" / MODEL, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithWeights})
