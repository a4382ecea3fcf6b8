"""A dry run counts what a run does: bytes, products, sends, and a picture of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamaseek.dry_run.estimate import estimate
from llamaseek.dry_run.host import PROCESS, host_memory, read_bytes
from llamaseek.dry_run.rank import (
    Part,
    RankReport,
    Setting,
    dry_run,
    fullest_moment,
    kinds,
)
from llamaseek.dry_run.trace import Movement, TracedWork, counted
from llamaseek.herd import config_from_sizes
from llamaseek.models import build_model
from llamaseek.plan.flops import training_flops
from llamaseek.plan.gpus import find_gpu, rates_of
from llamaseek.plan.layout import Layout, Running
from llamaseek.plan.step import send_seconds
from llamaseek.recipe.load import load_recipe
from llamaseek.recipe.parallel import ParallelRecipe
from llamaseek.recipe.reading import find_recipe
from llamaseek.runtime.check import model_config
from tests.cli.run import Cli

LLAMA = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
DEEPSEEK = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,  # as wide as the keys: the fused attention would pad it
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
}
LENGTH = 2048  # rows as long as this go to the fused attention


def setting(family: str, micro_batches: int = 4, **degrees: object) -> Setting:
    sizes = LLAMA if family == "llama3" else DEEPSEEK
    plan = ParallelRecipe.model_validate(degrees)
    return Setting(config_from_sizes(family, sizes), plan, LENGTH, 1, micro_batches)


def sends(report: RankReport) -> dict[str, int]:
    """Bytes of one micro-batch by dimension."""
    out: dict[str, int] = {}
    for part in report.parts:
        for group, size in (part.forward + part.backward).sent.items():
            name = report.groups.get(group, "other")
            out[name] = out.get(name, 0) + size
    return out


@pytest.mark.parametrize("family", ["llama3", "deepseek_v3"])
def test_the_products_are_the_planner_s_and_split_over_ranks(family: str) -> None:
    config = setting(family).config
    wanted = LENGTH * training_flops(config, LENGTH, config.multi_token_depth)
    for degrees in ({}, {"tensor": 2}, {"shard": 2, "tensor": 4}):
        tried = setting(family, **degrees)
        report = dry_run(tried, 0)
        work = report.parts[0].forward + report.parts[0].backward
        # The fused backward makes the scores anew: 2.5 forwards, where the convention counts 2.
        attention = work.attention_flops * 3 / 3.5
        found = (work.product_flops + attention) * tried.layout.tensor
        # The router and the latents are made on every rank's own tokens.
        assert found == pytest.approx(wanted, rel=0.02), degrees


def test_every_number_is_on_as_many_ranks_as_the_layout_says() -> None:
    whole = dry_run(setting("llama3"), 0).parameters
    model = build_model(setting("llama3").config)
    assert whole == sum(p.numel() for p in model.parameters())
    split = [dry_run(setting("llama3", shard=2, pipeline=2), rank) for rank in range(4)]
    assert sum(report.parameters for report in split) == whole
    zero = dry_run(setting("llama3", data=4, zero=True), 0)
    hands = [0] * 4  # whole weights, the largest first, to the rank with the least
    for size in sorted((p.numel() for p in model.parameters()), reverse=True):
        hands[hands.index(min(hands))] += size
    assert zero.parameters == whole and zero.optimizer == 8 * max(hands)


def test_moments_of_experts_are_shared_among_their_copies_alone() -> None:
    zero = dry_run(replace(setting("deepseek_v3", data=4, expert=2, zero=True), moment=2), 0)
    routed = 3 * 8 * 3 * 128 * 64  # layers, this rank's experts, three matrices each
    rest = zero.parameters - routed
    # Of three layers' matrices, one of two copies steps five ninths; the rest is on four ranks.
    assert zero.optimizer == pytest.approx(2 * 2 * (routed * 5 / 9 + rest / 4), rel=0.03)


def test_sends_are_the_formulas() -> None:
    tensor = sends(dry_run(setting("llama3", tensor=2), 0))["tensor"]
    hidden = LENGTH * 128 * 2  # bytes in bf16
    # Four collectives a layer each way; embedding and head add two more each way at the most.
    assert tensor == pytest.approx(0.5 * hidden * 8 * 4, rel=0.3)
    routed = sends(dry_run(setting("deepseek_v3", data=4, expert=4), 0))["expert"]
    # Rows go and come back, and their gradients do: 4 experts a token, 3 layers that route.
    assert routed == pytest.approx(0.75 * hidden * 4 * 4 * 3, rel=0.1)


def test_a_rank_of_every_kind_is_built_once() -> None:
    assert kinds(setting("llama3", pipeline=4)) == {0: [0], 1: [1, 2], 3: [3]}
    assert kinds(setting("llama3", tensor=2)) == {0: [0]}
    assert len(kinds(setting("llama3", pipeline=2, schedule="interleaved"))) == 2
    last = [report.parts[0].layers for report in runs(setting("llama3", pipeline=2, last_layers=1))]
    assert last == [[0, 1, 2], [3]]


def runs(tried: Setting) -> list[RankReport]:
    """A rank of every kind."""
    return [dry_run(tried, rank) for rank in kinds(tried)]


def test_selective_recomputation_sends_nothing_again_and_keeps_little() -> None:
    kept, products, sent = {}, {}, {}
    for what in ("none", "selective", "full"):
        tried = setting("deepseek_v3", data=4, expert=4)
        report = dry_run(replace(tried, checkpoint=what), 0)
        kept[what] = report.parts[0].kept
        work = report.parts[0].forward + report.parts[0].backward
        products[what], sent[what] = work.product_flops, sends(report)["expert"]
    assert sent["selective"] == sent["none"] < sent["full"]
    assert kept["full"] < kept["selective"] < kept["none"] / 2
    assert products["none"] < products["selective"] < products["full"]


def test_rows_in_fp8_take_half_of_what_goes_to_experts() -> None:
    tried = setting("deepseek_v3", data=4, expert=4, fp8_dispatch=True)
    rows = 0.75 * LENGTH * 4 * 3 * 128  # numbers: choices, layers that route, width
    # Of four times, one goes in fp8: a byte a number, and a scale of four for 128 of them.
    assert sends(dry_run(tried, 0))["expert"] == pytest.approx(
        rows * (3 * 2 + 1 + 4 / 128), rel=0.02
    )


def test_modules_that_predict_ahead_run_the_head_again() -> None:
    plain = setting("deepseek_v3")
    config = config_from_sizes("deepseek_v3", {**DEEPSEEK, "num_nextn_predict_layers": 1})
    ahead = dry_run(Setting(config, plain.plan, LENGTH, 1, 4, depth=1), 0)
    once = dry_run(plain, 0)
    assert ahead.parts[0].layers[-1] == 4 and ahead.activations > once.activations > 0


def test_forwards_in_flight() -> None:
    assert [Running().in_flight(4, place, 8) for place in range(4)] == [4, 3, 2, 1]
    assert Running().in_flight(4, 0, 2) == 2
    assert [Running(stages_per_rank=2).in_flight(2, place, 8) for place in range(2)] == [5, 3]


def test_the_fullest_moment_is_that_of_the_schedule() -> None:
    def part(kept: int, fullest: int) -> Part:
        return Part([], TracedWork(), TracedWork(), kept, fullest)

    assert fullest_moment([part(10, 15)], 1, 4, 1) == 15
    assert fullest_moment([part(10, 15)], 4, 8, 3) == 2 * 10 + 15
    # Two stages: four forwards of the first and the first of the second, whose backward is next.
    assert fullest_moment([part(10, 12), part(1, 50)], 4, 8, 5) == 4 * 10 + 50


def test_the_memory_of_a_split_weight_is_the_ranks_own() -> None:
    whole, split = (dry_run(setting("deepseek_v3", data=4, expert=e), 0) for e in (1, 4))
    # Tokens are as many, but three quarters of the experts and of their gradients are elsewhere.
    assert split.parameters < whole.parameters / 2
    assert split.activations < 1.5 * whole.activations


def test_ranks_that_split_a_row_do_half_of_its_products_together() -> None:
    # Chunks of 2,048 tokens, which go to the fused attention.
    alone, split = (replace(setting("llama3", context=c), length=16384) for c in (1, 4))
    found = [dry_run(s, rank).parts[0] for s in (alone, split) for rank in range(s.layout.gpus)]
    whole, *parts = [(part.forward + part.backward).attention_flops for part in found]
    assert set(parts) == {whole * 9 / 16 / 4}  # eight chunks: (1 + 2 + … + 8) / 64 of all pairs


def test_compiled_kernels_read_and_write_once() -> None:
    x, weight = torch.ones(64, 32), torch.ones(32, 16)
    moved = []
    for compiled in (False, True):
        with counted(Movement(compiled)) as work:
            ((x + 1).relu() @ weight).exp().neg().sum()
        moved.append(work.moved)
    wide, narrow, number = 64 * 32 * 4, 64 * 16 * 4, 4
    assert moved == [4 * wide + 5 * narrow + number, 2 * wide + narrow]
    assert work.product_flops == 2 * 64 * 32 * 16


def test_more_micro_batches_hide_the_pipeline() -> None:
    gpu = find_gpu("h100")
    shares = []
    for count in (4, 64):
        tried = setting("llama3", micro_batches=count, pipeline=4)
        found = estimate(tried, runs(tried), gpu, "bf16")
        shares.append(count / found.seconds)
        assert found.bubble == pytest.approx(3 * found.slot.seconds)
    assert shares[1] > 1.5 * shares[0]


def test_an_exchange_uses_the_node_s_links_and_the_network_at_once() -> None:
    rates = rates_of(find_gpu("h800"), "bf16")
    tried = setting("deepseek_v3", data=16, expert=16)
    seconds = send_seconds(tried.layout, "expert", 15.0, rates)  # a byte to each of 15 others
    assert seconds == pytest.approx(8 / rates.network)
    near = setting("deepseek_v3", data=8, expert=8)
    assert send_seconds(near.layout, "expert", 7.0, rates) == pytest.approx(7 / rates.link)


def test_a_recipe_is_planned_and_drawn(cli: Cli, tmp_path: Path) -> None:
    layout = ("parallel.shard=2", "parallel.tensor=2", "data.length=128")
    done = cli("train-plan", "quickstart-llama3", *layout, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["ranks"] == 4 and answer["fits"]
    assert answer["host"]["ranks"] == 4 and answer["host"]["start_bytes"] == 4 * PROCESS
    assert set(answer["per_rank"][0]["sent_bytes"]) == {"shard", "tensor", "replicas"}
    picture = tmp_path / "layout.png"
    wanted = ("train.float8=rowwise", "parallel.tensor=1", "--draw", str(picture))
    told = cli("train-plan", "quickstart-llama3", *layout, *wanted)
    assert told.code == 0, told.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "of the fp8 peak" in told.out and "shard 2\n" in told.out
    assert "tokens/s" in told.out and "embedding, head, layers 0–3" in told.out


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-405b", "llama-3.1-405b-128k"])
def test_a_cluster_begins_with_little_on_its_hosts(name: str) -> None:
    recipe = load_recipe(find_recipe(f"cluster-{name}"), [])
    report = RankReport(0, 0, 0, int(6e9), 0, int(2e9), 0, 0, 0)
    found = host_memory(recipe, model_config(recipe), [report], find_gpu("h100"))
    assert found["ranks"] == 8 and found["start_bytes"] <= 64e9
    assert found["save_bytes"] == 8 * (PROCESS + 8e9)  # copied to be written in the background


def test_what_a_host_reads_of_a_model() -> None:
    layout = ["parallel.shard=2"]
    new = load_recipe(find_recipe("quickstart-llama3"), layout)
    config = model_config(new)
    whole = 4 * sum(p.numel() for p in build_model(config).parameters())
    emulated = new.model_copy(update={"train": new.train.model_copy(update={"float8": "deepseek"})})
    assert read_bytes(new, config) == 0 and read_bytes(emulated, config) == whole
    started = new.model_copy(update={"model": new.model.model_copy(update={"init_from": "a"})})
    assert 0 < read_bytes(started, config) < whole / config.num_hidden_layers
    alone = started.model_copy(update={"parallel": ParallelRecipe()})
    assert read_bytes(alone, config) == whole


def test_what_cannot_be_planned_is_one_line(cli: Cli) -> None:
    wrong = (("--dtype", "int3"), ("--gpu", "h9000"), ("parallel.tensor=3",), ("--draw", "a.txt"))
    for words in wrong:
        done = cli("train-plan", "tiny-shakespeare", *words)
        assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert torch.distributed.is_initialized() is False
    assert Layout().gpus == 1
