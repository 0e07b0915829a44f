"""What pyproject.toml cannot say: the pipeline in this folder goes into the wheel as headstart_project."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["headstart*"]), "headstart_project"], package_dir={"headstart_project": "."}
)
