"""Make sparsity quick on a CPU: blocks of outputs that each read a set of inputs of their own.

Zeros in a dense tensor cost as much as other values, and general sparse formats gain nothing below some 90 %. Here the
rows of a weight are cut into blocks (of 128 to 256), and each block keeps its own k input columns. What is left is a
gather and one batched dense product, near the ideal speed from half of the columns on, in plain PyTorch, and trainable.

Which form of the product is quickest depends on number format, batch and layout, so :func:`choose` times all of them,
and the dense layer beside them, which stays where nothing is quicker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import UsageError
from efface.parts.nn.modes import mode
from efface.parts.timing import Timing, interleave

FORMS = ("groups", "rows", "columns")
"""``rows`` gathers along the last axis, ``columns`` along the one before, for linear layers and 1x1 convolutions;
``groups`` makes one convolution with a group for each block, of any kernel."""
MARGIN = 1.05
"""How many times as quick as the dense layer a form has to be; less may be noise."""


class ColumnBlock(nn.Module):
    """Tensors of a layer in column blocks; they start as zeros.

    ``weight`` (blocks, rows, kept, ...), of the form ``rows`` (blocks, kept, rows), as its product is quickest with;
    ``bias`` (blocks * rows) and ``columns`` (blocks, kept), the inputs that each block reads. Rows beyond the outputs
    fill the last block and are cut off.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    columns: Tensor

    def __init__(
        self, inputs: int, outputs: int, taps: Sequence[int], *, blocks: int, kept: int, bias: bool, form: str
    ) -> None:
        super().__init__()
        if not (1 <= kept <= inputs and 1 <= blocks <= outputs):
            what = f"{blocks} blocks of {outputs} outputs cannot keep {kept} of {inputs} inputs each"
            raise UsageError(what, fix="Keep at least one input and at most all, in no more blocks than outputs")
        rows = -(-outputs // blocks)
        self.form = form
        self.weight = nn.Parameter(torch.zeros(blocks, *((kept, rows) if form == "rows" else (rows, kept, *taps))))
        self.bias = nn.Parameter(torch.zeros(blocks * rows)) if bias else None
        self.register_buffer("columns", torch.zeros(blocks, kept, dtype=torch.int64))

    def args(self) -> dict[str, Any]:
        """Return the arguments that build such a module, as JSON values."""
        blocks, kept = self.columns.shape
        return {"blocks": blocks, "kept": kept, "bias": self.bias is not None, "form": self.form}

    def extra_repr(self) -> str:
        """Return the arguments."""
        return ", ".join(f"{name}={value}" for name, value in self.args().items())


class ColumnBlockLinear(ColumnBlock):
    """Map (..., in_features) to (..., out_features), each block of outputs from ``kept`` inputs of its own."""

    def __init__(
        self, in_features: int, out_features: int, *, blocks: int, kept: int, bias: bool = True, form: str = "rows"
    ) -> None:
        super().__init__(in_features, out_features, (), blocks=blocks, kept=kept, bias=bias, form=form)
        self.in_features, self.out_features = in_features, out_features
        _check_form(self)

    def args(self) -> dict[str, Any]:
        """Return the arguments that build such a module, as JSON values."""
        return {"in_features": self.in_features, "out_features": self.out_features, **super().args()}

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        flat = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        if self.form == "rows":
            y = _by_rows(flat, self.weight, self.bias, self.columns)
        else:
            y = _by_columns(flat.t().contiguous(), self.weight, self.bias, self.columns).t()
        y = (y if y.shape[1] == self.out_features else y[:, : self.out_features]).contiguous()
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)


class ColumnBlockConv2d(ColumnBlock):
    """Convolve (b, in_channels, h, w), each block of output channels reading ``kept`` input channels of its own."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        *,
        blocks: int,
        kept: int,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] | str = (0, 0),
        dilation: Sequence[int] = (1, 1),
        bias: bool = True,
        form: str = "groups",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, blocks=blocks, kept=kept, bias=bias, form=form)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, list(kernel_size)
        self.stride, self.dilation = list(stride), list(dilation)
        self.padding = padding if isinstance(padding, str) else list(padding)
        _check_form(self)

    def args(self) -> dict[str, Any]:
        """Return the arguments that build such a module, as JSON values."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        return {**{name: getattr(self, name) for name in names}, **super().args()}

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, out_channels, h', w')."""
        if self.form == "groups":
            x, weight, groups = x.index_select(1, self.columns.flatten()), self.weight.flatten(0, 1), len(self.columns)
            y = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, groups)  # type: ignore[arg-type]
            return y[:, : self.out_channels]
        x = x[:, :, :: self.stride[0], :: self.stride[1]]
        b, c, h, w = x.shape
        if self.form == "columns":
            y = _by_columns(x.reshape(b, c, h * w), self.weight.flatten(2), self.bias, self.columns)
            return y[:, : self.out_channels].reshape(b, self.out_channels, h, w)
        y = _by_rows(x.permute(0, 2, 3, 1).reshape(b * h * w, c), self.weight, self.bias, self.columns)
        return y[:, : self.out_channels].reshape(b, h, w, self.out_channels).permute(0, 3, 1, 2)


def convertible(layer: nn.Module) -> bool:
    """Say whether ``layer`` has a form in column blocks: linear layers, and convolutions of pictures without groups."""
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return type(layer) is nn.Linear


def from_dense(layer: nn.Module, columns: Tensor, form: str | None = None) -> ColumnBlock:
    """Return ``layer`` with its ``columns`` (blocks, kept) alone, in its number format, on its device.

    The form is by default the first that the layer can have. Raises :class:`UsageError` where it is not
    :func:`convertible`.
    """
    if not convertible(layer):
        raise UsageError(f"{type(layer).__name__} has no form in column blocks", fix="Leave it as it is")
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    given: dict[str, Any] = {"blocks": len(columns), "kept": columns.shape[1], "bias": layer.bias is not None}
    given["form"] = form or _forms(layer)[0]
    outputs, inputs = layer.weight.shape[:2]
    new: ColumnBlock
    if isinstance(layer, nn.Linear):
        new = ColumnBlockLinear(inputs, outputs, **given)
    else:
        given |= {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        new = ColumnBlockConv2d(inputs, outputs, layer.kernel_size, **given)
    new.to(layer.weight)
    with torch.no_grad():
        new.columns.copy_(columns)
        parts = layer.weight.split(-(-outputs // len(columns)))  # fewer than blocks where whole blocks are padding
        by_row = new.weight.transpose(1, 2) if new.form == "rows" else new.weight
        for wanted, block, part in zip(new.columns, by_row, parts, strict=False):
            block[: len(part)] = part.index_select(1, wanted).view(len(part), *block.shape[1:])
        if new.bias is not None and layer.bias is not None:
            new.bias[:outputs] = layer.bias
    return new.train(layer.training).requires_grad_(layer.weight.requires_grad)


@dataclass(frozen=True)
class Choice:
    """What was quickest: ``dense``, with no module, or a form and its module; and how long each took."""

    form: str
    module: ColumnBlock | None
    timings: Mapping[str, Timing]

    @property
    def speedup(self) -> float:
        """How many times as quick as the dense layer the choice is."""
        return self.timings["dense"].low / self.timings[self.form].low


def choose(layer: nn.Module, x: Tensor, columns: Tensor, *, seconds: float = 0.3) -> Choice:
    """Time ``layer`` on ``x`` beside its forms with ``columns``, in turns, and return the quickest.

    A form counts as quicker if it is so by :data:`MARGIN`, at the first quartile of the calls: the slow ones tell of
    interruptions.
    """
    modules = {form: from_dense(layer, columns, form) for form in _forms(layer)}
    calls = {name: lambda module=module: module(x) for name, module in {"dense": layer, **modules}.items()}
    with torch.inference_mode(), mode(layer, training=False):
        timings = interleave(calls, seconds=seconds)
    best = min(timings, key=lambda name: timings[name].low * (1 if name == "dense" else MARGIN))
    return Choice(best, modules.get(best), timings)


def _forms(layer: Any) -> tuple[str, ...]:
    """Return the forms that a linear layer or convolution, dense or in blocks, may have."""
    if isinstance(layer, nn.Linear | ColumnBlockLinear):
        return FORMS[1:]
    padded = layer.padding != "valid" and any(extent != 0 for extent in layer.padding)
    return FORMS if tuple(layer.kernel_size) == (1, 1) and not padded else FORMS[:1]


def _check_form(layer: ColumnBlock) -> None:
    if layer.form not in _forms(layer):
        fix = f"Take one of {', '.join(_forms(layer))}"
        raise UsageError(f"{layer.form!r} is no form that a {type(layer).__name__} of this kernel has", fix=fix)


def _by_rows(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor) -> Tensor:
    """Map (n, in) to (n, blocks * rows)."""
    blocks, kept, rows = weight.shape
    gathered = x.index_select(1, columns.view(-1)).view(-1, blocks, kept).transpose(0, 1)  # (blocks, n, kept)
    y = torch.bmm(gathered, weight).transpose(0, 1)  # baddbmm first copies the bias to every row, and is slower
    if bias is None:
        return y.reshape(-1, blocks * rows)
    if torch.is_grad_enabled():
        return y.reshape(-1, blocks * rows).add_(bias)
    laid_out = y.new_empty(y.shape)  # in one pass with the bias, which autograd does not follow
    return torch.add(y, bias.view(blocks, rows), out=laid_out).view(-1, blocks * rows)


def _by_columns(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor) -> Tensor:
    """Map (..., in, n) to (..., blocks * rows, n)."""
    gathered = x.index_select(-2, columns.flatten()).unflatten(-2, columns.shape)  # (..., blocks, kept, n)
    y = (weight @ gathered).flatten(-3, -2)
    return y if bias is None else y.add_(bias[:, None])
