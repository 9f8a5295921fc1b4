"""Networks of transformers and diffusers that lost channels run, generate, and are saved and opened as folders."""

import json

import numpy as np
import pytest
import torch
import zoo

from efface.core.models import Opened, open_model
from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.errors import WeightsError
from efface.parts.graph import ChannelGraph, channel_graph, keep_best
from efface.seeds import numpy_generator

NAMES = ("llama", "qwen2", "gpt2", "bert", "vit", "conditional_unet")


def uneven(graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Keep another share of each group, at random."""
    draws = numpy_generator(0, "uneven")
    shares = (0.5, 0.75)
    return {
        name: keep_best(group, draws.random(group.size), shares[number % 2], multiple_of=1)
        for number, (name, group) in enumerate(graph.groups.items())
    }


def dropped(name: str, folder) -> tuple[zoo.Case, Plan, Opened]:
    torch.manual_seed(0)
    case = zoo.TAKEN[name]()
    case.net.save_pretrained(folder)
    opened = open_model(folder)
    graph = channel_graph(opened.model, case.args, case.kwargs)
    plan = Plan.of(opened.model, plan_removal(graph, uneven(graph), reexport=False), method="uneven")
    return case, plan, opened


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_saved_and_opened_with_the_sizes_that_are_left(name: str, tmp_path) -> None:
    case, plan, opened = dropped(name, tmp_path / "whole")
    opened.save(tmp_path / "small", plan.apply)
    small = opened.model
    again = open_model(tmp_path / "small").model
    assert type(again) is type(case.net)
    assert sum(p.numel() for p in again.parameters()) < 0.9 * sum(p.numel() for p in case.net.parameters())
    with torch.no_grad():
        wanted, found = (net(*case.args, **case.kwargs)[0] for net in (small, again))
    assert torch.equal(wanted, found)
    open_model(tmp_path / "small").save(tmp_path / "third")  # the sizes go on with it
    assert open_model(tmp_path / "third").model.state_dict().keys() == again.state_dict().keys()
    plan.undo(small)
    opened.save(tmp_path / "undone")
    assert not json.loads((tmp_path / "undone" / "config.json").read_text()).get("kept_sizes")


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "bert", "vit"])
@pytest.mark.parametrize("inside", [True, False], ids=["feed-forward", "all"])
def test_what_all_layers_lost_alike_the_stock_class_opens(name: str, inside: bool, tmp_path) -> None:
    torch.manual_seed(0)
    case = zoo.TAKEN[name]()
    net, twin = case.net.eval(), type(case.net)(case.net.config).eval()
    whole = net.config.to_dict()
    graph = channel_graph(net, case.args, case.kwargs)
    chosen = {
        n: keep_best(group, np.arange(group.size), 0.5, multiple_of=1)
        for n, group in graph.groups.items()
        if not inside or any(word in n for word in ("up_proj", "gate_proj", "mlp", "intermediate", "fc1"))
    }
    plan = Plan.of(net, plan_removal(graph, chosen, reexport=False), method="even")
    assert net.config.to_dict() == whole
    plan.apply(net)
    assert net.config.to_dict() != twin.config.to_dict() == whole  # whose configuration was the same object
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted, found = (one(*case.args, **case.kwargs)[0] for one in (net, again))
    assert torch.equal(wanted, found)
    plan.save(tmp_path / "plan")
    plan.undo(net)
    assert net.config.to_dict() == whole
    Plan.load(tmp_path / "plan").apply(twin, strict=False)
    assert twin.config.to_dict()["hidden_size" if "hidden_size" in whole else "n_embd"] == again.config.hidden_size


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_decoders_generate_with_their_cache(name: str, tmp_path) -> None:
    case, plan, opened = dropped(name, tmp_path / "whole")
    net = plan.apply(opened.model)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, fresh = (net.generate(*case.args, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, fresh)
    assert cached.shape == (2, 11)


def test_damaged_sizes_are_refused(tmp_path) -> None:
    _, plan, opened = dropped("bert", tmp_path / "whole")
    opened.save(tmp_path / "small", plan.apply)
    path = tmp_path / "small" / "config.json"
    config = json.loads(path.read_text())
    config["kept_sizes"]["tensors"]["classifier.weight"] = [5, 99]
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="kept_sizes does not fit the network"):
        open_model(tmp_path / "small")
