"""Memory of a training step, counted on tensors without storage: the same on every machine, before the first step."""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.data import default_collate

from hap.errors import HapError

CPU_MICRO_BATCH = 128  # images in a pass on a CPU, where memory is not what limits
HEADROOM = 0.85  # of what is free: gradients of activations, logits of the loss, fragments


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step on one device.

    Attributes:
        per_image: kept for the backward pass, for each image of a pass.
        per_pass: the same whatever the number of images (16-bit copies of the weights).
        state: weights, gradients and two moments.
        input: of one image in a batch.
    """

    per_image: float
    per_pass: float
    state: int
    input: int

    def needed(self, micro: int, images: int) -> float:
        """For a step of `images`, `micro` in each pass; the next step's images are on their way."""
        return self.state + self.per_pass + micro * self.per_image + 2 * images * self.input

    def micro_batch(self, images: int, free: float | None) -> int:
        """The largest divisor of `images` that fits into `free` bytes; None on a CPU.

        Raises:
            HapError: one image is too much.
        """
        for passes in range(1, images + 1):
            micro = images // passes
            if images % passes:
                continue
            if micro <= CPU_MICRO_BATCH if free is None else self.needed(micro, images) <= HEADROOM * free:
                return micro
        raise HapError(
            f"a pass of one image needs {self.needed(1, images) / 1e9:.1f} GB, more than {(free or 0) / 1e9:.1f} GB "
            "of memory allow: choose a smaller model, or try micro_batch_size=1"
        )


def step_memory(task: torch.nn.Module, sample: dict, precision: str) -> StepMemory:
    """Count it with saved-tensor hooks, the attention being PyTorch's fused kernel. Compiled, it is the same.

    Args:
        task: on the CPU; only its shapes matter.
        sample: of the training data.
        precision: Lightning's name; autocast where it is mixed.
    """
    few, many = (_kept(task, sample, size, precision) for size in (2, 4))
    per_image = (many - few) / 2
    parameters = list(task.parameters())
    state = sum(p.nbytes * (4 if p.requires_grad else 1) for p in parameters)
    size = sum(value.nbytes for value in default_collate([sample]).values())
    return StepMemory(per_image, few - 2 * per_image, state, size)


def _kept(task: torch.nn.Module, sample: dict, size: int, precision: str) -> int:
    """Bytes that a forward pass of `size` images keeps for the backward pass, weights and images left out."""
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive: an address is not used again meanwhile

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    training = task.training
    task.train()
    batch = default_collate([sample] * size)
    weights = dict(task.named_parameters()) | dict(task.named_buffers())
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    autocast = torch.autocast("cpu", dtype, enabled=precision.endswith("-mixed"))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
    with FakeTensorMode() as mode, autocast, hooks, torch.compiler.set_stance("force_eager"):
        inputs = {name: mode.from_tensor(value) for name, value in batch.items()}
        fakes: dict[str, torch.Tensor] = {name: mode.from_tensor(value) for name, value in weights.items()}
        functional_call(task, fakes, (inputs,))
        for value in (*inputs.values(), *fakes.values()):
            kept.pop(value.untyped_storage()._cdata, None)
    task.train(training)
    return sum(storage.nbytes() for storage in kept.values())
