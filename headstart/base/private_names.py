"""Names that libraries keep to themselves and headstart uses all the same: the only module that may.

Each function says in which library and version the name was last seen, why no public way does, and which test fails when
it is no longer true. Modules are imported by a string, so that the identity of a stage does not count a library because
of what another stage uses.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


def end_as_python_does() -> None:
    """Wait for threads, then run what was registered with ``atexit``.

    Names: ``threading._shutdown``, ``atexit._run_exitfuncs``.
    Library: Python 3.11 to 3.14.
    Reason: ``os._exit`` does neither, and to join the threads is not enough: those of an executor wait for work until
        ``threading._shutdown`` tells them that there will be none.
    Test: test_a_process_that_leaves_has_ended_its_threads_and_exit_functions
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


@contextmanager
def without_torch_compiler() -> Iterator[None]:
    """Import torchvision and timm in here, or count with torch's ``FlopCounterMode``, and torch's compiler is not imported
    with them. It is a module like any other as soon as this is over.

    Names: ``torch._dynamo``, of which they want ``disable`` and ``utils.is_compile_supported``.
    Library: torch 2.15, torchvision 0.29, timm 1.0.
    Reason: they want an answer to one question and a mark on some functions; importing it takes longer than all else that
        a stage imports, and they have no setting against it.
    Test: test_importing_the_libraries_of_networks_does_not_import_torchs_compiler_and_leaves_it_usable
    """
    name = "torch._dynamo"
    if name in sys.modules:
        yield
        return
    compiler, parts = ModuleType(name), ModuleType(f"{name}.utils")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    parts.is_compile_supported = lambda device: import_module(f"{name}.utils").is_compile_supported(device)  # type: ignore[attr-defined]
    sys.modules |= {name: compiler, parts.__name__: parts}
    try:
        yield
    finally:
        del sys.modules[name], sys.modules[parts.__name__]


def torchscript_decoder(*args: Any, **kwargs: Any) -> Any:
    """What OpenVINO's PyTorch frontend reads a network through.

    Names: ``openvino.frontend.pytorch.ts_decoder.TorchScriptPythonDecoder``, which is not documented.
    Library: OpenVINO 2026.4.
    Reason: ``openvino.convert_model``, which is, sends telemetry, and traces the network a second time to compare.
    Test: test_a_converted_network_answers_as_torch_and_has_its_batch_norm_folded
    """
    return import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder(*args, **kwargs)


def fold_openvino_batch_norm(model: Any) -> None:
    """Fold batch-norm of an OpenVINO model into its convolutions, as ``openvino.convert_model`` does.

    Names: ``openvino._offline_transformations.apply_moc_transformations``.
    Library: OpenVINO 2026.4.
    Reason: ``openvino.passes`` has no such pass, and ``openvino.convert_model`` sends telemetry.
    Test: test_a_converted_network_answers_as_torch_and_has_its_batch_norm_folded
    """
    import_module("openvino._offline_transformations").apply_moc_transformations(model, cf=False, smart_reshape=True)


def list_no_packages_in_mlflow() -> None:
    """MLflow lists the modules of every installed package before it saves a model; from now on of none.

    Names: ``mlflow.utils.requirements_utils._MODULES_TO_PACKAGES``.
    Library: MLflow 3.17.
    Reason: the list serves a warning about requirements that do not fit, and takes longer than all the rest of saving; it
        is made even where ``pip_requirements`` are given.
    Test: test_mlflow_saves_a_model_without_listing_all_packages
    """
    module: Any = import_module("mlflow.utils.requirements_utils")
    assert hasattr(module, "_MODULES_TO_PACKAGES")
    module._MODULES_TO_PACKAGES = {}
