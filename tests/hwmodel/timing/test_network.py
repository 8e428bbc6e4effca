"""The closed form of a training step: against layer formulas, against programs, against numbers in print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.facts import network_layers
from compiler.ir import Graph
from compiler.losses import Loss
from compiler.passes import FoldBatchNorm
from hwmodel.config import EncodingPath, H2LearnConfig, Halo, MembraneWrite, TileConfig, UpdateMemory, load_config
from hwmodel.isa import ConvTile, FcTile, Queue, UpdateTile
from hwmodel.program import Layer, NeuronFacts, Phase, Program
from hwmodel.timing.closed_forms import (
    encoding_conv_cycles,
    forward_conv_cycles,
    forward_linear_cycles,
    update_conv_cycles,
    update_linear_cycles,
)
from hwmodel.timing.network import training_time
from hwmodel.timing.passes import Setting, forward_pass, gradient_pass, update_pass
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles
from runtime.timing.simulate import PhaseTiming, simulate
from spikec.models import load_model

CONFIG = load_config("h2learn")


def setting(config: H2LearnConfig = CONFIG, **changes: object) -> Setting:
    base = Setting(config=config, timesteps=10, batch=4, tiles=DenseTiles(config))
    return replace(base, **changes)  # type: ignore[arg-type]  # fields of Setting


def layer(**values: object) -> Layer:
    base: dict[str, object] = {
        "name": "layer", "engine": Queue.FE, "kind": "conv", "nodes": (), "c_in": 256, "c_out": 256, "kernel": (3, 3),
        "stride": (1, 1), "out_h": 56, "out_w": 56, "groups": 1, "hold": False,
    }  # fmt: skip
    facts = base | values
    shape = (facts["c_out"], facts["out_h"], facts["out_w"])
    neurons = (NeuronFacts(node="lif", fires=True, shape=shape),)  # type: ignore[arg-type]  # three integers
    return Layer(**({"neurons": neurons} | facts))  # type: ignore[arg-type]  # fields of Layer


CONVOLUTIONS = st.builds(
    lambda c_in, c_out, kernel, out_h, out_w: layer(
        c_in=c_in, c_out=c_out, kernel=(kernel, kernel), out_h=out_h, out_w=out_w
    ),
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5]), st.integers(1, 40), st.integers(1, 40),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(facts=CONVOLUTIONS, timesteps=st.integers(1, 25), batch=st.integers(1, 9))
def test_prototypes_sum_to_the_closed_forms_of_convolutions(facts: Layer, timesteps: int, batch: int) -> None:
    one = setting(timesteps=timesteps, batch=batch)
    forward = forward_pass(0, facts, one, keeps=True)
    assert forward.work.cycles == forward_conv_cycles(facts, CONFIG, timesteps, batch)
    update = update_pass(0, facts, one)
    blocks = [facts.c_in]
    assert update.work.cycles == update_conv_cycles(facts, CONFIG, timesteps, batch, blocks, CONFIG.tile)
    dense = replace(facts, engine=Queue.BE)
    encoding = forward_pass(0, dense, one, keeps=True)
    assert encoding.work.cycles == encoding_conv_cycles(dense, CONFIG, timesteps, batch, CONFIG.tile)


@settings(max_examples=50, deadline=None)
@given(c_in=st.integers(1, 2000), c_out=st.integers(1, 600), timesteps=st.integers(1, 25), batch=st.integers(1, 9))
def test_prototypes_sum_to_the_closed_forms_of_linear_layers(c_in: int, c_out: int, timesteps: int, batch: int) -> None:
    facts = layer(kind="fc", c_in=c_in, c_out=c_out, kernel=(1, 1), out_h=1, out_w=1)
    one = setting(timesteps=timesteps, batch=batch)
    forward = forward_pass(0, facts, one, keeps=False)
    assert forward.work.cycles == forward_linear_cycles(facts, CONFIG, timesteps, batch)
    update = update_pass(0, facts, one)
    assert update.work.cycles == update_linear_cycles(facts, CONFIG, timesteps, batch, [c_in])
    assert update.gradient_bytes == 2 * 2 * c_in * c_out


def test_the_layer_of_section_3_3_2() -> None:
    """256 -> 256 channels at 56 x 56: cycles by hand, and the share of the memory."""
    facts, one = layer(), setting(window_density={0: 1.0})
    assert forward_pass(0, facts, one, keeps=True).work.cycles == 4 * 16 * 49 * 650
    assert update_pass(0, facts, one).work.cycles == 4 * 2 * 49 * 8 * (9 * 256 // 4 + 8)
    assert gradient_pass(0, facts, facts, one).work.cycles == 16 * 4 * 49 * 40 * (16 * 9 + 4)


def test_skipping_both_zeros_gains_what_is_published() -> None:
    """Figure 3.12: 5.19x, within 2 %."""
    facts = layer()
    tiles = SampledTiles(CONFIG, {0: Density(inputs=0.25, outputs=0.25)}, seed=0, samples_per_shape=256)
    dense, both = (gradient_pass(0, facts, facts, setting(tiles=t)).work.cycles for t in (DenseTiles(CONFIG), tiles))
    assert abs(dense / both / 5.19 - 1) < 0.02


def test_bytes_of_one_layer_by_hand() -> None:
    """64 -> 16 channels, one tile: every byte of the three passes."""
    facts, one = layer(c_in=64, c_out=16, out_h=8, out_w=8), setting(window_density={0: 0.5})
    images, pixels = 40, 64
    neurons = 16 * pixels * images
    forward = 64 * pixels * images / 8 + 9 * 64 * 16 * 2 + neurons / 8 + neurons * (0.5 * 2 + 1 / 8)
    assert forward_pass(0, facts, one, keeps=True).sample_bytes == forward
    update = 64 * pixels * images / 8 + neurons * 2
    assert update_pass(0, facts, one).sample_bytes == update
    assert update_pass(0, facts, one).gradient_bytes == 4 * 9 * 64 * 16
    behind = layer(c_in=16, c_out=32, out_h=8, out_w=8)
    arriving = 32 * pixels * images * (2 + 1 / 8) + 9 * 16 * 32 * 2
    leaving = neurons * (2 + 1 / 8) + neurons * (0.5 * 2 + 2 / 8)
    assert gradient_pass(0, facts, behind, one).sample_bytes == arriving + leaving


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("m_write", MembraneWrite.DENSE),
        ("gradient_halo", Halo.REFETCHED),
        ("encoding", EncodingPath.BACKWARD),
    ],
)
def test_choices_that_cost_time(field: str, value: object) -> None:
    layers = network_layers(load_model("zoo:cifar10").graph, CONFIG)
    changed = replace(CONFIG, timing=replace(CONFIG.timing, **{field: value}))  # type: ignore[arg-type]
    windows = dict.fromkeys(range(len(layers)), 0.25)
    sparse = dict.fromkeys(range(len(layers)), Density(inputs=0.1, outputs=0.1))
    base, other = (
        training_time(layers, setting(c, window_density=windows, tiles=SampledTiles(c, sparse, seed=0)))
        for c in (CONFIG, changed)
    )
    assert other.period_cycles > base.period_cycles


def test_a_memory_of_its_own_relieves_the_update() -> None:
    layers = network_layers(load_model("zoo:mnist").graph, CONFIG)
    changed = replace(CONFIG, timing=replace(CONFIG.timing, update_memory=UpdateMemory.SEPARATE))
    sparse = Density(inputs=0.1, outputs=0.1)
    times = [
        training_time(layers, setting(c, tiles=SampledTiles(c, dict.fromkeys(range(6), sparse), seed=0)))
        for c in (CONFIG, changed)
    ]
    assert times[1].backward_cycles < times[0].backward_cycles


def check_program(program: Program, layers: Sequence[Layer]) -> None:
    """Busy cycles of Forward and Weight Update Engine against the closed forms, whatever the schedule cut."""
    timing = {phase: simulate(program, phase) for phase in (Phase.FORWARD, Phase.BACKWARD)}
    assert [row.name for row in layers] == [row.name for row in program.layers]
    for number, facts in enumerate(program.layers):
        check_forward(program, timing[Phase.FORWARD], number, facts)
        check_update(program, timing[Phase.BACKWARD], number, facts)


def check_forward(program: Program, timing: PhaseTiming, number: int, facts: Layer) -> None:
    config, steps, batch = program.config, program.timesteps, program.batch
    if facts.engine is Queue.FE:
        found = timing.work[Queue.FE, number].cycles
        own = [i for i in program.phases[Phase.FORWARD][Queue.FE] if i.layer == number]
        if facts.kind == "fc":
            assert found == forward_linear_cycles(facts, config, steps, batch)
            assert any(isinstance(i, FcTile) for i in own)
            return
        tiles = [i for i in own if isinstance(i, ConvTile)]
        assert {tile.nn for tile in tiles} == {batch}
        chunks = -(-steps // max(tile.nt for tile in tiles))  # the LUTs are programmed for each
        assert found == forward_conv_cycles(facts, config, steps, batch, chunks)


def check_update(program: Program, timing: PhaseTiming, number: int, facts: Layer) -> None:
    config, steps, batch = program.config, program.timesteps, program.batch
    own = [i for i in program.phases[Phase.BACKWARD].get(Queue.WUE, ()) if i.layer == number]
    tiles = [i for i in own if isinstance(i, UpdateTile)]
    if not tiles:
        return
    size = max(tile.channels for tile in tiles)
    inside = facts.c_in // facts.groups
    blocks = [min(size, inside - first) for first in range(0, inside, size)]
    cut = TileConfig(h=max(tile.h for tile in tiles), w=max(tile.w for tile in tiles))
    at_once = replace(config, weight_update=replace(config.weight_update, rows=max(tile.nt for tile in tiles)))
    expected = update_conv_cycles(facts, at_once, steps, batch, blocks, cut)  # where the source's buffer cuts time too
    assert timing.work[Queue.WUE, number].cycles == expected


@pytest.mark.parametrize("name", ["digits-conv", pytest.param("mnist", marks=pytest.mark.slow)])
def test_small_programs_are_busy_as_the_closed_forms_say(name: str) -> None:
    check_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "imagenet", "nmnist", "cifar10dvs", "loihi", "fpga"])
def test_published_networks_are_busy_as_the_closed_forms_say(name: str) -> None:
    check_network(name)


def graph_of(name: str) -> Graph:
    """A network that the machine can train: without batch normalisation."""
    return FoldBatchNorm()(load_model(f"zoo:{name}").graph)


def check_network(name: str) -> None:
    graph = graph_of(name)
    program = compile_training(graph, CONFIG, loss=Loss.MSE).program
    check_program(program, network_layers(graph, CONFIG))


def test_an_uncut_program_moves_the_bytes_of_the_closed_form() -> None:
    """digits-conv fits every buffer: the program's passes move what the ideal dataflow moves, but for small tables."""
    graph = graph_of("digits-conv")
    program = compile_training(graph, CONFIG, loss=Loss.MSE).program
    layers = network_layers(graph, CONFIG)
    timing = simulate(program, Phase.BACKWARD)
    one = setting(timesteps=program.timesteps, batch=program.batch)
    convolutions = [n for n, facts in enumerate(layers) if facts.engine is Queue.FE and facts.kind == "conv"]
    assert convolutions
    for number, facts in enumerate(layers):
        if number in convolutions:
            moved = sum(
                b for way, b in timing.bytes.items() if way.layer == number and way.buffer in ("wu_gm", "wu_in")
            )
            assert isclose(moved, update_pass(number, facts, one).sample_bytes, rel_tol=1e-9)
