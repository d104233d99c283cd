"""Libraries that come with an extra: what asks for one that is not installed ends in one line that names the extra."""

from __future__ import annotations

import importlib.util

from sleepfm.errors import DependencyError

# Module, the library's own name, and the extra of setup.cfg that brings it.
_EXTRAS = {
    "ray": ("Ray", "shards"),
    "deepspeed": ("DeepSpeed", "train"),
    "onnx": ("ONNX", "onnx"),
    "onnxscript": ("ONNX Script", "onnx"),
    "onnxruntime": ("ONNX Runtime", "onnx"),
}


def require(*modules: str) -> None:
    """Check that ``modules`` are installed, without importing them.

    Raises:
        DependencyError: naming those that are not, and the extras to install.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return
    *first, last = (_EXTRAS[module][0] for module in missing)
    names = f"{', '.join(first)} and {last}" if first else last
    extras = ",".join(dict.fromkeys(_EXTRAS[module][1] for module in missing))
    verb = "is" if len(missing) == 1 else "are"
    raise DependencyError(f"{names} {verb} not installed; pip install '.[{extras}]'")
