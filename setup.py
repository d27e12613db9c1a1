"""What pyproject.toml cannot say: conf/, at the top of a checkout, is orchestrator/conf/ in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["orchestrator", "orchestrator.*"]), "orchestrator.conf"],
    package_dir={"orchestrator.conf": "conf"},
)
