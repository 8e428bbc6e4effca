"""Training sessions: sub-batches and machines, checkpoints, weights in and out, overflow, master weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from compiler.differentiate import differentiate, run_training
from compiler.h2learn.compile import compile_inference
from compiler.ir import CompileError, DType, Encoding, Graph, Loc, Node, Param, Reading, Reset, Surrogate
from compiler.ir.ops import Encode, Flatten, Input, Li, Linear, Readout
from compiler.losses import RATE_SCALE, Loss
from hwmodel.program import Program
from runtime.engines import Engines, fast, golden
from runtime.host import F32
from runtime.host_loss import Labels
from runtime.session import engines_for
from runtime.training_session import State, TrainingSession
from tests.runtime.chains import CONFIG, Chain, halves, training_program
from tests.runtime.fp16_bounds import Bounded, U, gamma
from tests.runtime.trained_layers import Reference
from tests.runtime.trained_step import run_step

WIDE = {"surrogate": Surrogate(width=1.0)}


def _session(program: Program) -> TrainingSession:
    return TrainingSession(program, engines_for(program, use_golden=True))


def _network(encode: Encode | None = None) -> Graph:
    """A convolution in groups, a linear layer behind maps of several positions, biases throughout."""
    chain = Chain((2, 9, 7), 5, encode=encode).conv("conv1", 6).average("pool").lif("lif1", **WIDE)
    chain.conv("conv2", 6, groups=2).lif("lif2", reset=Reset.SOFT, **WIDE)
    return chain.flatten().linear("fc1", 12).lif("lif3", **WIDE).linear("fc2", 4).readout()


def _batch(samples: int) -> tuple[F32, Labels]:
    rng = np.random.default_rng(4)
    return rng.random((samples, 2, 9, 7), np.float32), rng.integers(0, 4, samples)


def _differ(left: State, right: State) -> list[str]:
    assert left.keys() == right.keys()
    return [name for name in left if left[name].tobytes() != right[name].tobytes()]


# -- sub-batches and machines -----------------------------------------------------------------------------------------


def _exact_network() -> Graph:
    """Weights and inputs are halves, and nothing decays: all sums of gradients are exact in FP16."""
    soft = {"reset": Reset.SOFT, "decay": 1.0, "threshold": 1.0}
    chain = Chain((2, 6, 6), 4, draw=halves).conv("conv1", 4).lif("lif1", **soft).average("pool").lif("lif2", **soft)
    return chain.conv("conv2", 6).lif("lif3", **soft).flatten().linear("fc", 8).lif("lif4", **soft).readout()


def _exact_batch(samples: int) -> tuple[F32, Labels]:
    rng = np.random.default_rng(6)
    return (rng.integers(0, 3, (samples, 2, 6, 6)) / 2).astype(np.float32), rng.integers(0, 8, samples)


def _mean_gradients(graph: Graph, x: F32, labels: Labels) -> dict[str, Tensor]:
    """Gradients of the mean loss in f64, from the image to the last bit without the machine."""
    training = differentiate(graph, Loss.MSE)
    return dict(run_training(training, torch.from_numpy(x), torch.from_numpy(labels), dtype=torch.float64).gradients)


@pytest.mark.parametrize(("batch", "machines"), [(12, 1), (4, 1), (4, 2), (4, 3), (3, 3), (2, 3), (1, 2)])
def test_exact_gradients_do_not_depend_on_sub_batch_and_machines(batch: int, machines: int) -> None:
    """Sums are exact in FP16, and the session divides them once, in f32: so equal bits, those of f64 rounded."""
    graph, (x, labels) = _exact_network(), _exact_batch(12)
    program = training_program(graph, batch=batch, machines=machines, loss=Loss.MSE, loss_scale=64.0)
    tally, found = _session(program).gradients(x, labels)
    assert tally.samples == 12
    for name, mean in _mean_gradients(graph, x, labels).items():
        sums = np.round(mean.numpy() * (64 * 12 * 2**12)) / 2**12  # f64 divides by 12; the sums are dyadic
        assert np.allclose(sums, mean.numpy() * (64 * 12), rtol=1e-12, atol=1e-12)
        assert np.array_equal(found[name], sums.astype(np.float32) / np.float32(64 * 12))
        assert sums.any()


@pytest.mark.parametrize("machines", [2, 3])
def test_machines_change_no_more_than_the_order_of_sums(machines: int) -> None:
    """Six sub-batches: both orders lie within gamma(5) of the sum of the sub-batches' own gradients."""
    x, labels = _batch(12)
    one, several = (
        _session(training_program(_network(), batch=2, machines=count, loss_scale=64.0)) for count in (1, machines)
    )
    parts = [one.gradients(x[i : i + 2], labels[i : i + 2])[1] for i in range(0, 12, 2)]
    left, right = one.gradients(x, labels)[1], several.gradients(x, labels)[1]
    differ = 0
    for name in left:
        magnitude = sum(np.abs(part[name].astype(np.float64)) for part in parts) / 6
        allowed = 2 * float(gamma(torch.tensor(5.0))) * magnitude + 2.0**-22 * np.abs(left[name])  # division in f32
        assert (np.abs(left[name].astype(np.float64) - right[name]) <= allowed).all()
        differ += int((left[name] != right[name]).sum())
    assert differ  # the order does matter


@pytest.mark.parametrize("machines", [1, 2, 3])
def test_three_sub_batches_have_one_order_on_any_machines(machines: int) -> None:
    """(a + b) + c in Mem 2 of one machine, or gathered from two or three."""
    x, labels = _batch(12)
    sessions = [_session(training_program(_network(), batch=4, machines=count)) for count in (1, machines)]
    for session in sessions:
        session.step(x, labels)
    assert _differ(sessions[0].state(), sessions[1].state()) == []


@pytest.mark.parametrize("samples", [10, 3])
def test_a_batch_that_does_not_fill_its_sub_batches_has_the_mean_of_its_own_samples(samples: int) -> None:
    """The machine rounds 12/10 of each gradient of the loss; the bounds of that grow through the layers to the end.

    The network is exact in its forward pass, so that f64 has the machine's spikes.
    """
    graph, (x, labels) = _exact_network(), _exact_batch(samples)
    program = training_program(graph, batch=4, loss=Loss.MSE, loss_scale=64.0)
    places = -(-samples // 4) * 4
    step = run_step(program, engines_for(program, use_golden=True), x, labels)
    sent = []
    for number, sub_batch in enumerate(step.sub_batches):
        own = labels[number * 4 : (number + 1) * 4]
        spikes = sub_batch.maps[program.tensors[program.output_index].name]
        sent.append(_loss_gradient(spikes, own, 64 * places / samples))
        machine = sub_batch.maps["loss_gradient"][:, :, 0, 0]
        assert sent[-1].excess(torch.from_numpy(machine.astype(np.float64))) <= 0
    found = Reference(program, graph).end_to_end(step, sent)
    for name, mean in _mean_gradients(graph, x, labels).items():
        assert torch.allclose(found[name].value, mean * (64 * places), rtol=1e-10, atol=1e-10)
        assert found[name].excess(step.gradients[name]) <= 0
        # a mean over all places would be off by a sixth, or a quarter
        assert float(found[name].error.max()) < 1 / 6 * float(found[name].value.abs().max())
    _, gradients = _session(program).gradients(x, labels)
    for name, array in gradients.items():
        assert np.array_equal(array, step.gradients[name].numpy().astype(np.float32) / np.float32(64 * places))


def _loss_gradient(spikes: np.ndarray, labels: Labels, scale: float) -> Bounded:
    """scale * d mse / d output in real numbers; the machine's has 4 roundings of f32, then one of FP16.

    Shapes: (t, n, 1, 1, c) -> (T, N, C).
    """
    output = spikes[:, :, 0, 0].astype(np.float64)
    wanted = np.eye(output.shape[2])[labels]
    value = np.zeros(output.shape)
    value[:, : len(labels)] = scale * 2 * (output.mean(0)[: len(labels)] - wanted) / output.shape[2] / len(output)
    exact = torch.from_numpy(value)
    return Bounded(exact, exact.abs() * (U + 2.0**-21))


# -- updates ----------------------------------------------------------------------------------------------------------


def test_an_update_is_that_of_the_documented_rule() -> None:
    """b = g + d w; m = mu m + b; w - s m with s = rate / (scale x samples): powers of two, one rounding a line."""
    x, labels = _batch(8)
    descent = {"learning_rate": 0.5, "momentum": 0.5, "weight_decay": 2.0**-6, "loss_scale": 16.0}
    session = _session(training_program(_network(), batch=4, **descent))
    momentum = {name: np.zeros(array.shape, np.float16) for name, array in session.weights().items()}
    for _ in range(2):
        before = {name: array.astype(np.float16) for name, array in session.weights().items()}
        scaled = {name: (array * 128).astype(np.float16) for name, array in session.gradients(x, labels)[1].items()}
        session.step(x, labels)
        for name, weight in before.items():
            slope = scaled[name] + weight * np.float16(2.0**-6 * 128)
            momentum[name] = momentum[name] * np.float16(0.5) + slope
            new = weight - (momentum[name].astype(np.float32) * np.float32(0.5 / 128)).astype(np.float16)
            assert np.array_equal(session.weights()[name], new.astype(np.float32))


def test_a_learning_rate_counts_for_its_step_only() -> None:
    x, labels = _batch(4)
    for master_weights in (False, True):
        given, own = (
            _session(training_program(_network(), learning_rate=0.125, master_weights=master_weights)) for _ in range(2)
        )
        for session in (given, own):
            session.step(x, labels, learning_rate=0.01)
        given.step(x, labels)
        own.step(x, labels, learning_rate=0.125)
        assert _differ(given.state(), own.state()) == []


@pytest.mark.parametrize("machines", [1, 2])
def test_master_weights_are_those_of_torch_and_their_copies_rounded(machines: int) -> None:
    """torch.optim.SGD in f32 on the machine's gradients; the constants are powers of two."""
    x, labels = _batch(8)
    descent = {"learning_rate": 0.25, "momentum": 0.5, "weight_decay": 2.0**-6, "loss_scale": 16.0}
    program = training_program(_network(), batch=4, machines=machines, master_weights=True, **descent)
    session = _session(program)
    names = sorted(session.weights())
    parameters = {name: torch.nn.Parameter(torch.from_numpy(session.weights()[name])) for name in names}
    optimiser = torch.optim.SGD(parameters.values(), lr=0.25, momentum=0.5, weight_decay=2.0**-6)
    for _ in range(3):
        gradients = session.gradients(x, labels)[1]
        for name in names:
            parameters[name].grad = torch.from_numpy(gradients[name])
        optimiser.step()
        session.step(x, labels)
        for name in names:
            assert np.array_equal(session.weights()[name], parameters[name].detach().numpy())
            state = session.state()
            assert np.array_equal(state[f"weight.{name}"], state[f"master.{name}"].astype(np.float16))


def test_reports_count_weights_that_moved_and_steps_that_were_lost() -> None:
    x, labels = _batch(4)
    session = _session(training_program(_network(), learning_rate=1e-7, loss_scale=16.0))
    before = session.weights()
    gradients = session.gradients(x, labels)[1]
    report = session.step(x, labels)
    after = session.weights()
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        names = [f"{layer}.weight", f"{layer}.bias"]
        assert report.changed[layer] == sum(int((before[name] != after[name]).sum()) for name in names)
        still = [(gradients[name] != 0) & (before[name] == after[name]) for name in names]
        assert report.lost[layer] == sum(int(lost.sum()) for lost in still)
    assert sum(report.lost.values()) > 0
    assert (report.samples, session.steps, session.presented) == (4, 1, 4)


# -- checkpoints and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("encoding", [Encoding.DIRECT, Encoding.BERNOULLI])
def test_a_restored_session_goes_on_bit_for_bit(master_weights: bool, momentum: float, encoding: Encoding) -> None:
    """Each sample draws its own code, so the second step must see the samples that came before it counted."""
    encode = Encode(kind=encoding, timesteps=5, seed=9 if encoding is Encoding.BERNOULLI else None)
    descent = {"momentum": momentum, "weight_decay": 0.01, "learning_rate": 0.3, "loss_scale": 16.0}
    program = training_program(_network(encode), batch=4, machines=2, master_weights=master_weights, **descent)
    (x, labels), whole, early, late = _batch(10), _session(program), _session(program), _session(program)
    whole.step(x, labels)
    early.step(x, labels)
    saved = {name: array.copy() for name, array in early.state().items()}
    late.step(x[:3], labels[:3])  # what restoring must undo
    late.restore(saved)
    reports = [session.step(x, labels) for session in (whole, late)]
    assert reports[0] == reports[1]
    assert _differ(whole.state(), late.state()) == []
    assert (late.steps, late.presented) == (2, 20)


def test_a_state_before_the_first_step_takes_the_optimiser_back_to_its_start() -> None:
    program = training_program(_network(), momentum=0.9, master_weights=True)
    (x, labels), session, fresh = _batch(4), _session(program), _session(program)
    start = session.state()
    session.step(x, labels)
    session.restore(start)
    for each in (session, fresh):
        each.step(x, labels)
    assert _differ(session.state(), fresh.state()) == []


@pytest.mark.parametrize("master_weights", [False, True])
def test_weights_go_in_and_out_unchanged(master_weights: bool) -> None:
    """A convolution in groups, a linear layer behind maps, biases; what FP16 holds comes back bit for bit."""
    program = training_program(_network(), batch=2, machines=2, master_weights=master_weights)
    rng = np.random.default_rng(8)
    session, (x, labels) = _session(program), _batch(4)
    given = {name: rng.normal(0, 0.3, a.shape).astype(np.float16) for name, a in session.weights().items()}
    session.load_weights({name: array.astype(np.float32) for name, array in given.items()})
    found = session.weights()
    assert all(np.array_equal(found[name], given[name]) for name in given)
    graph = _network().with_nodes(_network().nodes, parameters={n: a.astype(np.float32) for n, a in given.items()})
    fresh = _session(training_program(graph, batch=2, machines=2, master_weights=master_weights))
    for each in (session, fresh):
        each.step(x, labels)
    assert _differ(session.state(), fresh.state()) == []


def test_master_weights_keep_what_fp16_does_not_hold() -> None:
    session = _session(training_program(_network(), master_weights=True))
    given = {name: np.full(a.shape, 0.1, np.float32) for name, a in session.weights().items()}
    session.load_weights(given)
    found = session.weights()
    assert all((array == np.float32(0.1)).all() for array in found.values())
    found["fc1.bias"][0] = given["fc1.bias"][1] = 7.0  # neither array is the session's own
    assert (session.weights()["fc1.bias"] == np.float32(0.1)).all()


def _changed(name: str, array: np.ndarray | None) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Arrays with another one under a name, or without it."""

    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rest = {key: value for key, value in arrays.items() if key != name}
        return rest if array is None else rest | {name: array}

    return change


WRONG_WEIGHTS = {
    "missing": (_changed("fc2.bias", None), r"parameters \['fc2.bias'\] do not match the program"),
    "unknown": (_changed("fc9.bias", np.zeros(4, np.float32)), r"parameters \['fc9.bias'\] do not match the program"),
    "shape": (_changed("fc2.bias", np.zeros((1, 4), np.float32)), r"fc2.bias is \(1, 4\), the program has \(4,\)"),
    "nan": (_changed("fc2.bias", np.full(4, np.nan, np.float32)), "fc2.bias holds a value that FP16 does not"),
    "large": (_changed("fc2.bias", np.full(4, 65520.0, np.float32)), "fc2.bias holds a value that FP16 does not"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_as_a_whole(
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    session = _session(training_program(_network()))
    before = session.state()
    with pytest.raises(CompileError, match=message):
        session.load_weights(change({name: np.ones_like(a) for name, a in session.weights().items()}))
    assert _differ(before, session.state()) == []


WRONG_STATES = {
    "missing": (_changed("momentum.fc1.bias", None), r"\['momentum.fc1.bias'\] are not in both"),
    "unknown": (_changed("master.fc1.bias", np.zeros(12, np.float32)), r"\['master.fc1.bias'\] are not in both"),
    "shape": (_changed("weight.fc1.bias", np.zeros((1, 1, 1), np.float16)), r"weight.fc1.bias is float16 \(1, 1, 1\)"),
    "scalar": (_changed("weight.fc1.bias", np.float16(1.0)), r"weight.fc1.bias is float16 \(\), not"),  # type: ignore[arg-type]
    "dtype": (_changed("weight.fc1.bias", np.zeros((1, 1, 12), np.float32)), "weight.fc1.bias is float32"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_state_that_does_not_fit_is_refused_as_a_whole(
    change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    program = training_program(_network(), momentum=0.9)
    session, other = _session(program), _session(program)
    other.step(*_batch(4))
    before = session.state()
    with pytest.raises(CompileError, match="the state does not fit the program: .*" + message):
        session.restore(change(dict(other.state())))
    assert _differ(before, session.state()) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2]), r"labels are int64 \(3,\), must be one class index for each of 4 samples"),
        (np.zeros(0, np.int64), r"labels are int64 \(0,\)"),
        (np.zeros(4, np.float32), r"labels are float32 \(4,\)"),
        (np.array([0, 1, 2, 4]), "labels from 0 to 4, the network has 4 classes"),
        (np.array([-1, 1, 2, 3]), "labels from -1 to 3, the network has 4 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Labels, message: str) -> None:
    session = _session(training_program(_network()))
    for run in (session.step, session.gradients):
        with pytest.raises(CompileError, match=message):
            run(_batch(4)[0], labels)


def test_maps_are_classes_too() -> None:
    """The scores are 3 maps of 2 x 2: 12 classes."""
    graph = Chain((2, 4, 4), 3).conv("conv", 3).lif("lif", **WIDE).average("pool").flatten().readout()
    session, x = _session(training_program(graph)), np.ones((4, 2, 4, 4), np.float32)
    assert session.step(x, np.array([0, 5, 10, 11])).samples == 4
    with pytest.raises(CompileError, match="labels from 0 to 12, the network has 12 classes"):
        session.step(x, np.array([0, 5, 10, 12]))


def test_an_inference_program_is_refused() -> None:
    with pytest.raises(CompileError, match="is an inference program"):
        TrainingSession(compile_inference(_network(), CONFIG).program)


# -- overflow ---------------------------------------------------------------------------------------------------------


def _scores(timesteps: int, decay: float | None, weight: float = 1.0) -> Graph:
    """One input that always spikes, one output that integrates it, or none in between; the weight is the score."""
    loc = Loc("scores.py", 1)
    nodes = [
        Node("x", Input(shape=(timesteps, "N", 1, 1, 1), dtype=DType.SPIKE, axes="TNCHW"), (), loc),
        Node("flatten", Flatten(), ("x",), loc),
        Node("fc", Linear(weight=Param("w")), ("flatten",), loc),
    ]
    if decay is not None:
        nodes.append(Node("li", Li(decay=decay), ("fc",), loc))
    nodes.append(Node("readout", Readout(kind=Reading.RATE), (nodes[-1].name,), loc))
    return Graph("scores", tuple(nodes), "readout", {"w": np.full((2, 1), weight, np.float32)})


def _ones(samples: int, timesteps: int = 4) -> tuple[F32, Labels]:
    return np.ones((timesteps, samples, 1, 1, 1), np.float32), np.zeros(samples, np.int64)


# With equal scores d loss / d score is RATE_SCALE (1/2 - 1), so a step of T = 4 gets 1.25 x the loss scale.
STEP = RATE_SCALE / 2 / 4
OVERFLOWS = {
    "loss": ({"loss_scale": 65520 / STEP}, None, 1, "scores: error: the gradient of the loss overflows FP16 at step 0"),
    "membrane": (  # 20000, 40000, 60000, 80000 from step 3 to step 0
        {"loss_scale": 20000 / STEP},
        1.0,
        1,
        "scores: error: fc: a membrane potential gradient overflows FP16 at time step 0",
    ),
    "late membrane": (  # 40000, 80000
        {"loss_scale": 40000 / STEP},
        1.0,
        1,
        "scores: error: fc: a membrane potential gradient overflows FP16 at time step 2",
    ),
    "sum": ({"loss_scale": 20000 / STEP}, None, 1, "scores: error: fc: a weight gradient overflows FP16"),
    "sum of sub-batches": ({"loss_scale": 10000 / STEP}, None, 2, "fc: a weight gradient overflows FP16"),
    "gathered": (
        {"loss_scale": 10000 / STEP, "machines": 2},
        None,
        2,
        "fc: the gathered weight gradient overflows FP16",
    ),
    "weight": ({"learning_rate": 20000.0}, None, 1, "fc: a weight or its momentum overflows FP16"),
    "master": ({"learning_rate": 20000.0, "master_weights": True}, None, 1, "fc: a weight overflows FP16"),
}


@pytest.mark.parametrize("make", [golden, fast])
@pytest.mark.parametrize(("descent", "decay", "samples", "message"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_overflow_is_reported_with_its_place_and_nothing_is_trained(
    make: Callable[[], Engines], descent: dict[str, float], decay: float | None, samples: int, message: str
) -> None:
    session = TrainingSession(training_program(_scores(4, decay), batch=1, **descent), make())
    before = session.state()
    with pytest.raises(CompileError, match=f"{message}.*, in training step 0") as caught:
        session.step(*_ones(samples))
    assert "lower the loss scale" in caught.value.hint
    assert _differ(before, session.state()) == []


def test_a_step_after_one_that_failed_is_that_of_a_fresh_session() -> None:
    """Three sub-batches leave 60000 in Mem 2, the fourth makes it 80000."""
    descent = {"learning_rate": 2.0**-10, "momentum": 0.5, "loss_scale": 20000 / (RATE_SCALE / 2)}
    program = training_program(_scores(1, None), batch=1, **descent)
    failed, fresh = _session(program), _session(program)
    with pytest.raises(CompileError, match="a weight gradient overflows FP16, in training step 0"):
        failed.step(*_ones(4, timesteps=1))
    with pytest.raises(CompileError, match="a weight gradient overflows FP16"):
        failed.gradients(*_ones(4, timesteps=1))
    for session in (failed, fresh):
        session.step(*_ones(1, timesteps=1))
    assert _differ(failed.state(), fresh.state()) == []
    with pytest.raises(CompileError, match="in training step 1"):
        failed.step(*_ones(4, timesteps=1))
