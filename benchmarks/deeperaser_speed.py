"""Time DeepEraser as efface runs it beside a straightforward implementation, on a picture with text in a few places.

The plain form below refines the whole picture in float32, one module after another. efface's leaves out what cannot
change the masked places, computes the context's share of the GRU once, keeps channels last, and may use bfloat16 and
stop early. All take turns in one process: ``python benchmarks/deeperaser_speed.py [--threads 2] [--weights FOLDER]``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.core.trained import load
from efface.parts.data.erase_text import evaluation_set
from efface.parts.data.photos import photographs
from efface.parts.text.fonts import find_fonts
from efface.pictures.deeperaser import DeepEraser, Eraser


class PlainBlock(nn.Module):
    """Two normalised convolutions and a skip."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
        self.norm = nn.InstanceNorm2d(b)
        self.skip = nn.Conv2d(a, b, 1) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, channels, h, w)."""
        y = self.norm(self.conv1(x)).relu()
        y = self.norm(self.conv2(y)).relu()
        return (y + (x if self.skip is None else self.norm(self.skip(x)))).relu()


class PlainEncoder(nn.Module):
    """Features of picture and mask."""

    def __init__(self, m: DeepEraser) -> None:
        super().__init__()
        widths = (m.stem, *m.encoder)
        self.conv1, self.norm = nn.Conv2d(4 * m.stride**2, m.stem, 7, padding=3), nn.InstanceNorm2d(m.stem)
        self.stages = nn.Sequential()
        for a, b in itertools.pairwise(widths):
            self.stages.append(nn.Sequential(*[PlainBlock(a if i == 0 else b, b) for i in range(m.blocks)]))
        self.conv2 = nn.Conv2d(widths[-1], m.hidden + m.context, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, hidden + context, h, w)."""
        return self.conv2(self.stages(self.norm(self.conv1(x)).relu()))


class PlainGRU(nn.Module):
    """Three convolutions in each of two passes."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        for name, kernel, padding in (("1", (1, 5), (0, 2)), ("2", (5, 1), (2, 0))):
            for gate in "zrq":
                self.add_module(f"conv{gate}{name}", nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        for name in "12":
            convz, convr, convq = (self.get_submodule(f"conv{gate}{name}") for gate in "zrq")
            z = torch.sigmoid(convz(torch.cat([h, x], 1)))
            r = torch.sigmoid(convr(torch.cat([h, x], 1)))
            q = torch.tanh(convq(torch.cat([r * h, x], 1)))
            h = (1 - z) * h + z * q
        return h


class PlainEraser(nn.Module):
    """The network written plainly, with the names of efface's, so that it takes the same weights."""

    def __init__(self, m: DeepEraser) -> None:
        super().__init__()
        self.m, colours = m, 3 * m.stride**2
        self.encoder = PlainEncoder(m)
        self.progress = nn.Sequential(
            nn.Conv2d(colours, m.wide, 7, padding=3), nn.ReLU(), nn.Conv2d(m.wide, m.progress, 3, padding=1), nn.ReLU()
        )
        self.gru = PlainGRU(m.hidden, m.context + m.progress + colours)
        self.head = nn.Sequential(
            nn.Conv2d(m.hidden, m.wide, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(m.wide, colours, 3, padding=1)
        )
        self.last = nn.LeakyReLU(0.2) if m.out_act == "lrelu0.2" else nn.Identity()

    def forward(self, picture: Tensor, mask: Tensor) -> Tensor:
        """Return the last iterate of the whole picture."""
        first = F.pixel_unshuffle(picture, self.m.stride)
        x = torch.cat([first, F.pixel_unshuffle(mask, self.m.stride)], 1)
        hidden, context = self.encoder(x).split([self.m.hidden, self.m.context], 1)
        hidden, context, current = torch.tanh(hidden), torch.relu(context), first
        for _ in range(self.m.iterations):
            hidden = self.gru(hidden, torch.cat([context, self.progress(current), current], 1))
            current = first + self.last(self.head(hidden))
        return F.pixel_shuffle(current, self.m.stride).clamp(0, 1)


def network(weights: str | None) -> tuple[DeepEraser, Eraser]:
    if weights is not None:
        trained = load("deeperaser", weights=weights, device="cpu")
        assert isinstance(trained.method, DeepEraser)
        assert isinstance(trained.net, Eraser)
        return trained.method, trained.net
    torch.manual_seed(0)
    method = DeepEraser()
    return method, method.build().eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--weights", help="folder of weights; without it, the published size, untrained")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    method, net = network(options.weights)
    plain = PlainEraser(method).eval()
    plain.load_state_dict(net.state_dict())

    made = evaluation_set(photographs(None, "test"), find_fonts(None), seed=0, count=1, words=(3, 3))[0]
    x = torch.from_numpy(made["picture"]).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
    mask = torch.from_numpy(made["mask"])[None, None].float()

    def ours(dtype: torch.dtype, stop_when: float) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return method.run(net, x, mask=mask, stop_when=stop_when)

    forms: dict[str, Callable[[], Tensor]] = {
        "plain, float32": lambda: plain(x, mask),
        "efface, float32": lambda: ours(torch.float32, 0),
        "efface, bfloat16": lambda: ours(torch.bfloat16, 0),
        "efface, bfloat16, may stop early": lambda: ours(torch.bfloat16, 1 / 255),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    results: dict[str, Tensor] = {}
    for _ in range(options.repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            results[name] = form()
            seconds[name].append(time.perf_counter() - start)

    count = sum(p.numel() for p in net.parameters())
    print(f"{count:,} parameters, stride {method.stride}, {method.iterations} iterations, {options.threads} threads")
    print(f"{x.shape[3]}x{x.shape[2]} pixels, {mask.mean():.1%} masked in {len(made['boxes'])} places")
    print(f"{'form':34}{'seconds':>9}{'speed-up':>10}{'max difference in the mask':>28}")
    base = statistics.median(seconds["plain, float32"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        difference = ((results[name] - results["plain, float32"]).abs() * mask).max().item()
        print(f"{name:34}{median:9.2f}{base / median:9.1f}x{difference:28.1e}")


if __name__ == "__main__":
    main()
