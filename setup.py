"""What pyproject.toml cannot say: the pipeline in this folder goes into the wheel as headstart_project."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["headstart*"]), "headstart_project"], package_dir={"headstart_project": "."})
