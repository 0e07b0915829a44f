"""Put an environment's own programs first, also where it is not activated: `python` in dvc.yaml is then the one whose dvc
runs. `make setup` installs this into .venv, where every Python imports it as it starts."""

import os
import sys

programs, path = os.path.join(sys.prefix, "Scripts" if os.name == "nt" else "bin"), os.environ.get("PATH", os.defpath)  # noqa: PTH118 - starts fast
if programs not in path.split(os.pathsep):
    os.environ["PATH"] = programs + os.pathsep + path
