"""What pyproject.toml cannot say: the tree of YAML files travels inside the package, with the commit that it was built from."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ to rl/conf and writes rl/built_from.txt; an editable installation finds both in the checkout."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # of an earlier build: moved modules
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "rl"
        benchmarks = shutil.ignore_patterns(
            "bench_*", "measured_step.yaml"
        )  # they are not installed
        shutil.copytree("conf", package / "conf", ignore=benchmarks)
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        try:
            commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            commit = ""  # an archive of the source has no history
        (package / "built_from.txt").write_text(commit, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithConf})
