"""Small random networks to attack, with samples that fit them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import assume
from hypothesis import strategies as st

from compiler.attack import Case
from compiler.ir import DType, Encoding, Graph
from tests.strategies import networks


@st.composite
def victims(
    draw: st.DrawFn,
    encodings: Sequence[Encoding] = (Encoding.DIRECT, Encoding.BERNOULLI),
    image_input: bool | None = None,
) -> Graph:
    """Classifiers, taking spikes or images; image_input None is either."""
    graph = draw(
        networks(
            dyadic=False,
            image_input=image_input,
            encodings=list(encodings),
            residual=True,
            max_size=6,
            max_channels=5,
            max_timesteps=4,
            blocks=(0, 1),
        )
    ).graph
    kind = graph.types[graph.output]
    assume(kind.axes == "NC" and kind.size("C") > 1)
    return graph


def cases(graph: Graph, count: int, seed: int, *, targeted: bool = False) -> list[Case]:
    """Samples with random values and labels."""
    rng = np.random.default_rng(seed)
    source = graph.types[graph.input.name]
    shape = tuple(size for size, axis in zip(source.shape, source.axes, strict=True) if axis != "N")
    classes = graph.types[graph.output].size("C")
    made = []
    for sample in range(count):
        x: npt.NDArray[np.float32] = rng.random(shape, np.float32)
        if source.dtype is DType.SPIKE:
            x = (x < 0.4).astype(np.float32)
        label = int(rng.integers(classes))
        target = (label + 1 + int(rng.integers(classes - 1))) % classes if targeted else None
        made.append(Case(sample=sample, x=x, label=label, target=target))
    return made
