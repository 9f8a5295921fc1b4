"""Networks of every build: small ones of our own, and tiny configurations of the real classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.parts.nn.resnets import Bottleneck, ResNet, resnet_cifar


class Case(NamedTuple):
    """A network and its inputs."""

    net: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def words(vocabulary: int = 40, length: int = 6) -> Tensor:
    return torch.randint(3, vocabulary, (2, length), generator=torch.Generator().manual_seed(0))


class Dense(nn.Module):
    """Concatenates all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4 + 6 * i, 6, 3, padding=1) for i in range(3))
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(22), nn.Linear(22, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.head(self.norm(x).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNet's block: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2)
        self.expand, self.depthwise, self.project = (
            nn.Conv2d(6, 24, 1),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24),
            nn.Conv2d(24, 6, 1),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (24, 24, 6))
        self.squeeze, self.excite, self.head = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu6(self.norms[1](self.depthwise(F.relu6(self.norms[0](self.expand(x))))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.norms[2](self.project(y))).mean((2, 3)))


class Shuffle(nn.Module):
    """ShuffleNet: grouped convolutions with their channels exchanged between them, and a split in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=3)
        self.second, self.side, self.head = nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        b, c, h, w = x.shape
        x = self.second(x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w))
        left, right = x.chunk(2, 1)
        return self.head(torch.cat([left, self.side(right)], 1))


class Upscale(nn.Module):
    """Super-resolution with pixel shuffle, a transposed convolution, and back by unshuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.transposed, self.down, self.tail = (
            nn.ConvTranspose2d(6, 10, 4, 2, 1),
            nn.Conv2d(40, 8, 1),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(F.leaky_relu(self.body(x))), 2)
        return self.tail(F.relu(self.down(F.pixel_unshuffle(self.transposed(x), 2))))


class Shared(nn.Module):
    """One layer used twice, bare parameters, and weights used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.leave = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(1, 1, 8))
        self.inner, self.outer = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(self.enter(x)))) * self.scale + self.shift
        x = x + torch.relu(x @ self.inner) @ self.outer
        return self.leave(x) + F.linear(x, self.enter.weight.t())


class Einsum(nn.Module):
    """Attention written by hand, in Einstein's way."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 4, 6
        self.qkv, self.out, self.norm = nn.Linear(10, 72), nn.Linear(24, 10), nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, -1, self.size).unbind(2)
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(self.size**-0.5).softmax(-1)
        return self.norm(x + self.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)))


def vgg() -> Case:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return Case(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 24), nn.PReLU(24), nn.Linear(24, 5)),
        (pictures(2, 3, 16, 16),),
    )


def resnext() -> Case:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, groups=4), nn.InstanceNorm2d(24, affine=True)
    )
    return Case(nn.Sequential(*net, nn.ReLU(), nn.Conv2d(24, 5, 1)), (pictures(2, 3, 8, 8),))


def bottlenecks() -> Case:
    return Case(ResNet(Bottleneck, 4, (1, 1), 8, 3, 10, large=True), (pictures(2, 3, 32, 32),))


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    return Case(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (pictures(2, 5, 16),))


def unet() -> Case:
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return Case(net, (pictures(2, 3, 8, 8), 3))


def conditional_unet() -> Case:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        cross_attention_dim=12, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return Case(net, (pictures(2, 4, 8, 8), 3, pictures(2, 5, 12)))


def autoencoder() -> Case:
    from diffusers import AutoencoderKL

    net = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=8, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return Case(net, (pictures(2, 3, 8, 8),))


def dit() -> Case:
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=4, in_channels=2, out_channels=2, num_layers=2, sample_size=4,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    return Case(net, (pictures(2, 2, 4, 4),), {"timestep": torch.tensor([1, 2]), "class_labels": torch.tensor([3, 4])})


def transformer_2d() -> Case:
    from diffusers import Transformer2DModel

    net = Transformer2DModel(
        num_attention_heads=4, attention_head_dim=4, in_channels=8, norm_num_groups=4, cross_attention_dim=6
    )
    return Case(net, (pictures(2, 8, 4, 4), pictures(2, 3, 6)))


_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
_CLIP = _VIT | {"projection_dim": 10}
_TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "max_position_embeddings": 16}  # fmt: skip


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    return Case(ViTForImageClassification(ViTConfig(**_VIT, num_labels=5)), (pictures(2, 3, 8, 8),))


def clip_vision() -> Case:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return Case(CLIPVisionModelWithProjection(CLIPVisionConfig(**_CLIP)), (pictures(2, 3, 8, 8),))


def clip_text() -> Case:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**_TEXT, projection_dim=10, eos_token_id=39)
    return Case(CLIPTextModelWithProjection(config), (words(),))


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    return Case(LlamaForCausalLM(LlamaConfig(**_TEXT, num_key_value_heads=2)), (words(),))


def qwen2() -> Case:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Case(Qwen2ForCausalLM(Qwen2Config(**_TEXT, num_key_value_heads=2, tie_word_embeddings=True)), (words(),))


def qwen3() -> Case:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Case(Qwen3ForCausalLM(Qwen3Config(**_TEXT, num_key_value_heads=2, head_dim=4)), (words(),))


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    return Case(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=4)), (words(),))


def bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    return Case(BertForSequenceClassification(BertConfig(**_TEXT)), (words(),))


def t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return Case(T5ForConditionalGeneration(config), (), {"input_ids": words(), "decoder_input_ids": words(length=4)})


def convnext() -> Case:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2, num_labels=5)
    return Case(ConvNextForImageClassification(config), (pictures(2, 3, 8, 8),))


def swin() -> Case:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=5
    )
    return Case(SwinForImageClassification(config), (pictures(2, 3, 16, 16),))


def mobilenet() -> Case:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, num_labels=5, image_size=32)
    return Case(MobileNetV2ForImageClassification(config), (pictures(2, 3, 32, 32),))


OWN: dict[str, Callable[[], Case]] = {
    "resnet": lambda: Case(resnet_cifar(8, 8), (pictures(2, 3, 16, 16),)),
    "padded resnet": lambda: Case(resnet_cifar(8, 8, shortcut="pad"), (pictures(2, 3, 16, 16),)),
    "bottlenecks": bottlenecks,
    "vgg": vgg,
    "dense": lambda: Case(Dense(), (pictures(2, 3, 6, 6),)),
    "inverted residual": lambda: Case(Inverted(), (pictures(2, 3, 9, 9),)),
    "resnext": resnext,
    "shuffle": lambda: Case(Shuffle(), (pictures(2, 3, 5, 5),)),
    "super-resolution": lambda: Case(Upscale(), (pictures(2, 3, 6, 6),)),
    "shared": lambda: Case(Shared(), (pictures(2, 3, 5),)),
    "einsum": lambda: Case(Einsum(), (pictures(2, 5, 10),)),
    "encoder": encoder,
}
TAKEN: dict[str, Callable[[], Case]] = {
    f.__name__: f
    for f in (unet, conditional_unet, autoencoder, dit, transformer_2d, vit, clip_vision, clip_text, llama, qwen2,
              qwen3, gpt2, bert, t5, convnext, swin, mobilenet)
}  # fmt: skip
