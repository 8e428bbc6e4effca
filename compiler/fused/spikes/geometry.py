"""Sizes of a layer whose input is spikes."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir.ops import window_extent

BITS = 32  # spikes in a word, the first one in the lowest bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A convolution of maps with the channels last; of a linear layer, rows are the pixels of one map of one line.

    Spikes are kept as words, u32 (images, height, width, words): bit b of word g * words_of_group + w of a pixel is
    the spike of channel 32 * w + b of group g; bits of absent channels are 0.

    images: time steps and samples together. Shapes: x (images, height, width, channels), weight
    (out_channels, kernel height, kernel width, channels / groups), y (images, out_height, out_width, out_channels).
    """

    images: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @classmethod
    def of_linear(cls, rows: int, features: int, out_features: int) -> Geometry:
        """A linear layer."""
        return cls(images=1, height=1, width=rows, channels=features, out_channels=out_features)

    @property
    def out_height(self) -> int:
        """Lines of the result."""
        return window_extent(self.height, self.kernel[0], self.stride[0], self.padding[0])

    @property
    def out_width(self) -> int:
        """Columns of the result."""
        return window_extent(self.width, self.kernel[1], self.stride[1], self.padding[1])

    @property
    def group_channels(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    @property
    def group_out_channels(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def words_of_group(self) -> int:
        """Words that hold a group's spikes of one pixel."""
        return -(-self.group_channels // BITS)

    @property
    def words(self) -> int:
        """Words that hold all spikes of one pixel."""
        return self.groups * self.words_of_group

    @property
    def neurons(self) -> int:
        """Values of x."""
        return self.images * self.height * self.width * self.channels

    @property
    def multiplications(self) -> int:
        """Of the dense layer, one for each pair of an input within its map or not, and an output."""
        taps = self.kernel[0] * self.kernel[1]
        pixels = self.images * self.out_height * self.out_width
        return pixels * taps * self.group_channels * self.out_channels
