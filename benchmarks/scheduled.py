"""What torch's compiler makes of a unit of a model for a GPU, on a machine without one.

The forward and backward graphs of the unit are traced, partitioned and lowered as ``torch.compile`` does; then Inductor's
scheduler is told that their tensors lie on an H100 and decides which operations become one kernel. Nothing is generated or run:
what is taken is the scheduler's list of kernels, with the bytes that each reads and writes. This needs neither CUDA nor Triton.
It leans on parts of torch that are not public, and is written for the version in constraints.txt.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config
import torch._inductor.scheduler
from counted import Counting, Kernel
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.fx_passes.post_grad import post_grad_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_flatten, tree_map

from sleepfm.models import recompute
from sleepfm.training.tracking.unfilled import is_product

_DEVICE = torch.device("cuda", 0)
_H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    multi_processor_count=132,
    major=9,
    minor=0,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024,
    warp_size=32,
    total_memory=80 * 2**30,
)


@contextmanager
def units_as_scheduled(counting: Counting) -> Iterator[None]:
    """Within the block, every unit that is to be compiled runs as eager operations of which ``counting`` counts the products, and
    the kernels that the compiler would make of the rest.
    """
    compiled: dict[Any, Callable[..., Any]] = {}

    def scheduled(kind: type[nn.Module]) -> Callable[..., Any]:
        def run(unit: nn.Module, *args: Any) -> Any:
            state = {**dict(unit.named_parameters()), **dict(unit.named_buffers())}
            # A mask of rows is an attribute of the norms.
            lent = {
                (name, key): value
                for name, part in unit.named_modules()
                for key, value in vars(part).items()
                if isinstance(value, Tensor)
            }
            key = (kind, str(unit), _signature((state, lent, args)), _settings(unit))
            if key not in compiled:
                with counting.paused():
                    compiled[key] = _trace(kind, unit, counting)
            return compiled[key](state, lent, *args)

        return run

    with patch.object(recompute, "_compiled", scheduled), _an_h100():
        yield


def _signature(values: Any) -> tuple[Any, ...]:
    leaves, structure = tree_flatten(values)
    shapes = [(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad) for leaf in leaves if isinstance(leaf, Tensor)]
    return (str(structure), *shapes)


def _settings(unit: nn.Module) -> tuple[Any, ...]:
    return tuple((part.training, str(getattr(part, "_index", None))) for part in unit.modules())


def _trace(kind: type[nn.Module], unit: nn.Module, counting: Counting) -> Callable[..., Any]:
    """A function of parameters and buffers, of tensors lent to parts of ``unit``, and of arguments, that counts itself, forward
    and backward.
    """
    whole = _Whole(unit, recompute._FORWARDS[kind])

    def forward(state: dict[str, Tensor], lent: dict[tuple[str, str], Tensor], *args: Any) -> Any:
        with ExitStack() as undo:
            for (name, key), value in lent.items():
                undo.enter_context(patch.object(unit.get_submodule(name), key, value))
            return functional_call(whole, {f"unit.{name}": tensor for name, tensor in state.items()}, args)

    function = aot_function(
        forward,
        fw_compiler=lambda graph, inputs: _counted(graph, inputs, False, kind.__name__, counting),
        bw_compiler=lambda graph, inputs: _counted(graph, inputs, True, kind.__name__, counting),
        partition_fn=_partition,
        decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
    )

    def run(*values: Any) -> Any:
        with patch.object(torch.compiler, "is_compiling", lambda: True):
            return function(*values)

    return run


class _Whole(nn.Module):
    """``unit``, called past what decides whether it is compiled."""

    def __init__(self, unit: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.unit = unit
        self._forward = forward

    def forward(self, *args: Any) -> Any:
        return self._forward(self.unit, *args)


def _partition(graph: GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
    with V.set_fake_mode(torch._guards.detect_fake_mode([node.meta.get("val") for node in graph.graph.nodes])):
        joint_graph_passes(graph)
    return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)


def _counted(graph: GraphModule, inputs: Sequence[Any], backward: bool, unit: str, counting: Counting) -> Callable[..., Any]:
    """``graph``, which when it runs counts its products and the kernels beside them."""
    with torch._inductor.config.patch(recompute.COMPILER_OPTIONS), counting.paused():
        kernels = kernels_of(graph, inputs, backward, unit)

    def run(args: list[Any]) -> Any:
        with counting.products_of(kernels):
            return graph(*args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def kernels_of(graph: GraphModule, inputs: Sequence[Any], backward: bool, unit: str) -> list[Kernel]:
    """The kernels beside products that Inductor's scheduler makes of ``graph``, if its tensors lie on the device."""
    mode = torch._guards.detect_fake_mode(inputs)
    moved = copy.deepcopy(graph)
    with V.set_fake_mode(mode):
        post_grad_passes(moved, is_inference=False)
        there = _on_device(moved, inputs, mode)
        lowering = GraphLowering(moved, example_inputs=there, is_backward=backward, is_inference=False)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*there)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            return [kernel for node in lowering.scheduler.nodes if (kernel := _kernel(node, unit)) is not None]


def _kernel(node: Any, unit: str) -> Kernel | None:
    kind = type(node).__name__
    if kind == "NopKernelSchedulerNode":
        return None
    if kind != "ExternKernelSchedulerNode":
        return Kernel(f"fused in {unit}", float(node.get_read_write_buffers_sizes()))
    operation = getattr(node.node, "op_overload", None)
    name = operation._schema.name.removeprefix("aten::") if operation is not None else node.node.python_kernel_name or ""
    # A part of an operation with several results is no kernel of its own.
    if not name or is_product(name.rpartition(".")[2]):
        return None
    return Kernel(name, float(node.get_read_write_buffers_sizes()))


def _on_device(graph: GraphModule, inputs: Sequence[Any], mode: Any) -> list[Any]:
    """``inputs`` on the device; the nodes of ``graph`` afterwards say what they give there."""

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        size = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(mode, size, _DEVICE)

    class Moved(Interpreter):
        def run_node(self, n: Any) -> Any:
            known = n.meta.get("val")
            n.meta["val"] = result = super().run_node(n) if known is None else tree_map(there, known)
            return result

    for node in graph.graph.nodes:
        node.args = tree_map(lambda value: _DEVICE if isinstance(value, torch.device) else value, node.args)
        node.kwargs = tree_map(lambda value: _DEVICE if isinstance(value, torch.device) else value, node.kwargs)
    graph.recompile()
    moved = [there(value) for value in inputs]
    with mode:
        Moved(graph).run(*moved)
    return moved


@contextmanager
def _an_h100() -> Iterator[None]:
    """Inductor finds what it asks of a device and of Triton."""
    level = logging.getLogger("torch._inductor").level
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    try:
        with (
            patch.object(CudaInterface, "get_device_properties", staticmethod(lambda device=None: _H100)),
            patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda device=None: _H100)),
            patch.object(CudaInterface, "get_compute_capability", staticmethod(lambda device=None: 90)),
            patch.object(torch.cuda, "get_device_properties", lambda device=None: _H100),
            patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            patch.object(torch._inductor.scheduler, "has_triton", lambda *_: True),
        ):
            yield
    finally:
        logging.getLogger("torch._inductor").setLevel(level)
