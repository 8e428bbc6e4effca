"""What real masks cost the Backward Engine: python -m tests.bench.real_masks MODEL.spk --masks FILE.npz.

Records the masks of test samples on the machine (or takes those that the file holds), then counts them exactly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compiler.h2learn.compile_training import compile_training
from compiler.h2learn.emit_sgd import Descent
from compiler.h2learn.order_channels import Order, OrderChannels, balanced_orders
from compiler.ir import Graph
from compiler.ir.ops import Conv2d
from compiler.losses import Loss
from hwmodel.area import chip_area
from hwmodel.config import H2LearnConfig, Synchronise, load_config
from hwmodel.isa import GradConvTile, Instruction, Queue
from hwmodel.program import Phase, Program
from hwmodel.timing.sampled_tiles import Density, SampledTiles
from hwmodel.timing.tiles import DenseTiles
from runtime.machine import Machine
from runtime.timing.recorded_tiles import RecordedSession, Recorder, record_step
from runtime.timing.simulate import simulate
from spikec.commands.samples import held_out
from spikec.models import load_model
from tests.bench.mask_study import KERNEL, PADDING, Cost, MaskedLayer, ablation, gradient_tile, layer_costs

Arrays = dict[str, npt.NDArray[np.generic]]
PUBLISHED, BALANCED = "h2learn", "h2learn_balanced"
DRAWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A Backward Engine, and the order of the channels: as they are, learnt from other samples, or from the same."""

    config: H2LearnConfig
    order: str = ""


class MaskKeeper(Recorder):
    """Holds the machine, whose memory keeps the masks of the sub-batch that went backward last."""

    machine: Machine

    def begins(self, machine: Machine, phase: Phase) -> None:
        """Keep it."""
        self.machine = machine

    def executes(self, machine: Machine, queue: Queue, position: int, instruction: Instruction) -> None:
        """Nothing is counted."""


def compiled(graph: Graph, config: H2LearnConfig, loss_scale: float) -> Program:
    """The training program of a mean squared error."""
    descent = replace(Descent(), loss_scale=loss_scale)
    return compile_training(graph, config, loss=Loss.MSE, descent=descent).program


def record(program: Program, data: str, samples: int) -> Arrays:
    """Masks of each convolution's input gradient as bits, channels packed; "NAME/inputs", "NAME/outputs", shapes."""
    assert program.training is not None
    keeper = MaskKeeper(program)
    session, chosen = RecordedSession(program, recorder=keeper), held_out(data, samples)
    assert chosen.labels is not None
    found: dict[str, list[npt.NDArray[np.uint8]]] = {}
    channels: Arrays = {}
    for first in range(0, samples, program.batch):
        part = slice(first, first + program.batch)
        session.gradients(chosen.x[part], chosen.labels[part])
        for layer in program.training.masks:
            for side, name in (("inputs", layer.inputs), ("outputs", layer.outputs)):
                mask = keeper.machine.memory.array(program.index_of(name))[:, : len(chosen.x[part])]
                found.setdefault(f"{layer.layer}/{side}", []).append(np.packbits(mask != 0, axis=-1))
                channels[f"{layer.layer}/{side}/channels"] = np.array(mask.shape[-1])
        print(f"recorded {min(first + program.batch, samples)} of {samples} samples", flush=True)
    return {name: np.concatenate(parts, axis=1) for name, parts in found.items()} | channels


def samples_together(program: Program) -> dict[str, int]:
    """Samples of one gradient instruction, by the convolution whose input gradient it computes."""
    stream = program.phases[Phase.BACKWARD][Queue.BE]
    found = {program.layers[i.layer + 1].name: i.nn for i in stream if isinstance(i, GradConvTile)}
    assert all(i.nt == program.timesteps for i in stream if isinstance(i, GradConvTile))
    return found


def load_masks(path: Path, together: Mapping[str, int]) -> list[MaskedLayer]:
    """The layers of a file, in the order of the network."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = [name.removesuffix("/inputs") for name in arrays if name.endswith("/inputs")]
    bits = {
        name: np.unpackbits(arrays[name], axis=-1, count=int(arrays[f"{name}/channels"])).astype(np.bool_)
        for name in arrays
        if not name.endswith("/channels")
    }
    return [
        MaskedLayer(name=n, together=together[n], inputs=bits[f"{n}/inputs"], outputs=bits[f"{n}/outputs"])
        for n in reversed(names)
    ]


def variants(published: H2LearnConfig) -> dict[str, Variant]:
    """The published engine, each change alone, and together."""

    def engine(order: str = "", **changes: object) -> Variant:
        backward = replace(published.backward, **changes)  # type: ignore[arg-type]
        return Variant(config=replace(published, backward=backward), order=order)

    def ahead(order: str = "", shared_columns: int = 1) -> Variant:
        psum_bytes = 2 * published.backward.pe_psum_bytes
        return engine(order, run_ahead=1, pe_psum_bytes=psum_bytes, shared_columns=shared_columns)

    return {
        "tile": engine(),
        "iteration": engine(synchronise=Synchronise.ITERATION),
        "run ahead 1": ahead(),
        "run ahead 2": engine(run_ahead=2),
        "share 4": engine(shared_columns=4),
        "share 16": engine(shared_columns=16),
        "order": engine("others"),
        "order + run ahead 1": ahead("others"),
        "order + share 4": engine("others", shared_columns=4),
        "share 4 + run ahead 1": ahead(shared_columns=4),
        "balanced": Variant(config=load_config(BALANCED), order="others"),
        "balanced, own order": Variant(config=load_config(BALANCED), order="own"),
        "balanced, share 8": ahead("others", shared_columns=8),
        "balanced, iteration": engine("others", shared_columns=4, synchronise=Synchronise.ITERATION),
    }


def extra_mm2(config: H2LearnConfig, published: H2LearnConfig) -> float | None:
    """Area beyond the published chip; None where the buffers that it takes are not counted."""
    backward = config.backward
    if backward.synchronise is Synchronise.ITERATION or backward.run_ahead > 1:
        return None
    return chip_area(config).total - chip_area(published).total


def study(graph: Graph, layers: list[MaskedLayer], published: H2LearnConfig, judged: int) -> dict[str, dict[str, Cost]]:
    """Costs by layer and variant of the first samples; orders are learnt from the others, or from the same."""
    known = {
        "others": [layer.samples(judged, layer.inputs.shape[1]) for layer in layers],
        "own": [layer.samples(0, judged) for layer in layers],
    }
    balanced = load_config(BALANCED)
    orders = {
        key: balanced_orders(graph, {one.name: one.densities() for one in parts}, balanced)
        for key, parts in known.items()
    }
    costs: dict[str, dict[str, Cost]] = {}
    for layer in layers:
        found: dict[str, Cost] = {}
        for (_, order), group in _alike(variants(published)).items():
            masks = layer.samples(0, judged)
            if order:
                masks = masks.ordered(*_orders_of(graph, layer.name, orders[order]))
            found |= layer_costs(masks, published, group)
        costs[layer.name] = found
        print(f"counted {layer.name}", flush=True)
    return costs


def _alike(every: Mapping[str, Variant]) -> dict[tuple[int, str], dict[str, H2LearnConfig]]:
    """Variants that deal the same outputs to the same PEs."""
    groups: dict[tuple[int, str], dict[str, H2LearnConfig]] = {}
    for name, variant in every.items():
        key = (variant.config.backward.shared_columns, variant.order)
        groups.setdefault(key, {})[name] = variant.config
    return groups


def _orders_of(graph: Graph, name: str, orders: Mapping[str, Order]) -> tuple[Order | None, Order | None]:
    """Of the rows and the columns of a convolution's input gradient."""
    node = graph.node(name)
    while not isinstance((node := graph.node(node.inputs[0])).op, Conv2d):
        pass
    return orders.get(name), orders.get(node.name)


def total(costs: Mapping[str, Mapping[str, Cost]]) -> dict[str, Cost]:
    """Over the layers."""
    sums: dict[str, Cost] = {}
    for found in costs.values():
        for name, cost in found.items():
            sums.setdefault(name, Cost()).add(cost)
    return sums


def training_step(
    graph: Graph, ordered: Graph, data: str, samples: int, loss_scale: float
) -> dict[str, dict[str, float]]:
    """Elapsed cycles of a simulated sub-batch, and those of the Backward Engine, with recorded tiles."""
    chosen = held_out(data, samples)
    rows: dict[str, dict[str, float]] = {}
    assert chosen.labels is not None
    programs = {
        "published": (compiled(graph, load_config(PUBLISHED), loss_scale), None),
        "balanced, as in the network": (compiled(graph, load_config(BALANCED), loss_scale), None),
        "balanced, ordered": (compiled(ordered, load_config(BALANCED), loss_scale), None),
    }
    for name, (program, config) in programs.items():
        recorded = record_step(program, chosen.x, chosen.labels, config=config)
        for phase in (Phase.OVERLAP, Phase.BACKWARD):
            timing = simulate(program, phase, tiles=recorded.tiles(phase), kept=recorded.kept(phase))
            rows.setdefault(name, {})[f"{phase} elapsed"] = timing.elapsed_cycles
            rows[name][f"{phase} engine"] = timing.busy(Queue.BE)
            if name == "published":
                dense = simulate(program, phase, kept=recorded.kept(phase))
                rows.setdefault("dense", {})[f"{phase} elapsed"] = dense.elapsed_cycles
                rows["dense"][f"{phase} engine"] = dense.busy(Queue.BE)
        print(f"simulated {name}", flush=True)
    return rows


def random_speedup(layer: MaskedLayer, config: H2LearnConfig, published: H2LearnConfig) -> float:
    """That of masks of the same densities whose elements are independent, without borders."""
    density = Density(inputs=float(layer.inputs.mean()), outputs=float(layer.outputs.mean()))
    backward = published.backward
    tile = gradient_tile(h=published.tile.h, w=published.tile.w, nt=10, nn=4, rows=backward.rows, cols=backward.cols)
    drawn = SampledTiles(config, {0: density}, 0)
    cycles = sum(drawn.counts(tile, position).cycles for position in range(DRAWS))
    return DRAWS * DenseTiles(published).counts(tile, 0).cycles / cycles


def markdown(
    layers: list[MaskedLayer],
    costs: Mapping[str, Mapping[str, Cost]],
    ablations: Mapping[str, Mapping[str, float]],
    steps: Mapping[str, Mapping[str, float]],
    published: H2LearnConfig,
) -> str:
    """The tables of the study."""
    names = [layer.name for layer in layers]
    sums, every = total(costs), variants(published)
    lines = ["| | " + " | ".join((*names, "total", "extra mm2")) + " |", "|---" * (len(names) + 3) + "|"]
    facts = {
        "inputs": [f"{layer.inputs.mean():.3f}" for layer in layers],
        "outputs": [f"{layer.outputs.mean():.3f}" for layer in layers],
        "dense macs / valid": [f"{c['tile'].ideal:.2f}" for c in (*costs.values(), sums)],
        "PEs never wait": [f"{c['tile'].least_one:.2f}" for c in (*costs.values(), sums)],
        "utilisation, tile": [f"{c['tile'].utilisation:.2f}" for c in (*costs.values(), sums)],
        "utilisation, balanced": [f"{c['balanced'].utilisation:.2f}" for c in (*costs.values(), sums)],
    }
    width = len(names) + 2
    lines += [f"| {name} | " + " | ".join(cells + [""] * (width - len(cells))) + " |" for name, cells in facts.items()]
    for name in ("tile", "balanced"):
        cells = [f"{random_speedup(layer, every[name].config, published):.2f}" for layer in layers]
        lines.append(f"| random masks, {name} | " + " | ".join([*cells, "", ""]) + " |")
    for name, variant in every.items():
        area = extra_mm2(variant.config, published)
        cells = [f"{c[name].speedup:.2f}" for c in (*costs.values(), sums)] + ["" if area is None else f"{area:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| masks, tile | " + " | ".join(ablations) + " |", "|---" * (len(ablations) + 1) + "|"]
    for name in next(iter(ablations.values()), {}):
        lines.append(f"| {name} | " + " | ".join(f"{found[name]:.2f}" for found in ablations.values()) + " |")
    lines += ["", "| channels by density | " + " | ".join(f"{k / 10:.1f}" for k in range(10)) + " |", "|---" * 11 + "|"]
    for layer in layers:
        density = layer.densities()
        for side, values in (("inputs", density.inputs), ("outputs", density.outputs)):
            counts = np.histogram(values, bins=10, range=(0, 1))[0]
            lines.append(f"| {layer.name} {side} | " + " | ".join(map(str, counts)) + " |")
    if steps:
        columns = list(next(iter(steps.values())))
        lines += ["", "| sub-batch, cycles | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {n} | " + " | ".join(f"{row[c]:,.0f}" for c in columns) + " |" for n, row in steps.items()]
    return "\n".join(lines) + "\n"


def as_json(
    costs: Mapping[str, Mapping[str, Cost]],
    ablations: Mapping[str, Mapping[str, float]],
    steps: Mapping[str, Mapping[str, float]],
) -> str:
    """All numbers."""
    table = {
        layer: {
            name: {
                "speedup": cost.speedup,
                "ideal": cost.ideal,
                "never_wait": cost.least_one,
                "utilisation": cost.utilisation,
                "cycles": cost.cycles,
            }
            for name, cost in found.items()
        }
        for layer, found in (costs | {"total": total(costs)}).items()  # type: ignore[operator]
    }
    return json.dumps({"layers": table, "ablations": ablations, "training_step": steps}, indent=1) + "\n"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="zoo:NAME, FILE.spk or module:function; 3 x 3 convolutions of stride 1")
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--samples", type=int, default=64, help="recorded; the first half is judged")
    parser.add_argument("--masks", type=Path, required=True, help="file of recorded masks, made where it is missing")
    parser.add_argument("--loss-scale", type=float, default=1024.0)
    parser.add_argument("--ablation-samples", type=int, default=8)
    parser.add_argument("--step-samples", type=int, default=16, help="of the simulated training step, 0 for none")
    parser.add_argument("--output", type=Path, required=True, help="FILE, of FILE.md and FILE.json")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def check_convolutions(graph: Graph) -> None:
    """The study counts 3 x 3 convolutions of stride 1 that keep the size."""
    for node in list(_convolutions(graph))[1:]:
        assert isinstance(node, Conv2d)
        kernel = graph.parameters[node.weight.name].shape[2:]
        if (*kernel, *node.stride, *node.padding, node.groups) != (KERNEL, KERNEL, 1, 1, PADDING, PADDING, 1):
            raise SystemExit(f"{graph.name} has a convolution that is not 3 x 3, stride 1, padding 1, groups 1")


def _convolutions(graph: Graph) -> Iterator[Conv2d]:
    return (node.op for node in graph.nodes if isinstance(node.op, Conv2d))


def main() -> None:
    """Record, count, simulate, write."""
    options = arguments()
    graph, published = load_model(options.model).graph, load_config(PUBLISHED)
    check_convolutions(graph)
    program = compiled(graph, published, options.loss_scale)
    if not options.masks.exists():
        np.savez_compressed(options.masks, **record(program, options.data, options.samples))  # type: ignore[arg-type]
    layers = load_masks(options.masks, samples_together(program))
    judged = layers[0].inputs.shape[1] // 2
    costs = study(graph, layers, published, judged)
    parts = [layer.samples(judged, judged + options.ablation_samples) for layer in layers]
    ablations = {part.name: ablation(part, published, options.seed) for part in parts}
    steps: dict[str, dict[str, float]] = {}
    if options.step_samples:
        unseen = {part.name: part.densities() for part in (one.samples(judged, 2 * judged) for one in layers)}
        ordered = OrderChannels(balanced_orders(graph, unseen, load_config(BALANCED)))(graph)
        steps = training_step(graph, ordered, options.data, min(options.step_samples, judged), options.loss_scale)
    text = markdown(layers, costs, ablations, steps, published)
    print(text)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    options.output.with_suffix(".json").write_text(as_json(costs, ablations, steps), encoding="utf-8")


if __name__ == "__main__":
    main()
