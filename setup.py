"""What pyproject.toml cannot say: a wheel has conf/, which is at the top of a checkout, as orchestrator/conf/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Copies the configuration beside the package's own files; an editable install reads it where it is."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "orchestrator", "conf")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("conf", target)


setup(cmdclass={"build_py": WithConf})
