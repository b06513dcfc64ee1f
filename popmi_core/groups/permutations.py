"""Finite groups of permutations: of channels (colours, regular fields) and of the tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popmi_core.errors import ModelError
from popmi_core.groups.actions import channel_permutation
from popmi_core.groups.point_group import PointGroup

Permutation = tuple[int, ...]

# Larger groups are of no use to a method that runs the network once per element.
_LARGEST = 1024


class PermutationAction:
    """A group of permutations of ``degree`` things; ``permutations[i][j]`` is where element i sends j.

    Raises:
        ModelError: If one is no permutation, the first is not the identity, or they are not closed under composition.
    """

    exact = True

    def __init__(self, permutations: Sequence[Sequence[int]], name: str) -> None:
        self.permutations = tuple(tuple(one) for one in permutations)
        self.name = name
        self.degree = len(self.permutations[0]) if self.permutations else 0
        identity = tuple(range(self.degree))
        for one in self.permutations:
            _require_permutation(one, self.degree, name)
        if not self.permutations or self.permutations[0] != identity:
            raise ModelError(f"group {name}: element 0 is not the identity. List the identity first.")
        self._index = {one: index for index, one in enumerate(self.permutations)}
        for outer in self.permutations:
            for inner in self.permutations:
                if _composed(outer, inner) not in self._index:
                    raise ModelError(
                        f"group {name}: {outer} after {inner} is not among its {len(self.permutations)} elements. "
                        "Build it from generators with generated()."
                    )

    def __len__(self) -> int:
        return len(self.permutations)

    def compose(self, outer: int, inner: int) -> int:
        """Return the element that acts like ``inner`` and then ``outer``."""
        return self._index[_composed(self.permutations[outer], self.permutations[inner])]

    def inverse(self, index: int) -> int:
        """Return the element that undoes ``index``."""
        return self._index[_inverted(self.permutations[index])]


class ChannelAction(PermutationAction):
    """Permutations of the channels along ``dim``: colours, stains, or the channels of regular fields.

    More channels than ``degree`` are several fields, one after the other.
    """

    def __init__(self, permutations: Sequence[Sequence[int]], name: str = "channels", dim: int = 1) -> None:
        super().__init__(permutations, name)
        self.dim = dim

    @classmethod
    def regular(cls, group: PointGroup, dim: int = 1) -> ChannelAction:
        """Return the regular representation of ``group``, one channel per element: ``(g f)(h) = f(g^-1 h)``."""
        orders = [channel_permutation(group, element).tolist() for element in group.elements]
        # channel_permutation says what each place receives, an element of this class where each thing goes.
        return cls([_inverted(tuple(one)) for one in orders], f"regular {group.name}", dim)

    def act(self, index: int, inputs: Tensor) -> Tensor:
        """Return the fields with their channels permuted.

        Raises:
            ModelError: If the channels are no whole number of fields.
        """
        channels = inputs.shape[self.dim]
        if channels % self.degree:
            raise ModelError(
                f"group {self.name}: the input has {channels} channels, expected a multiple of {self.degree}. "
                "Check the channel axis."
            )
        places = torch.arange(channels, device=inputs.device).reshape(-1, self.degree)
        order = places[:, list(_inverted(self.permutations[index]))].flatten()
        return inputs.index_select(self.dim, order)

    def undo(self, index: int, features: Tensor) -> Tensor:
        """Return the channels put back."""
        return self.act(self.inverse(index), features)


class TokenAction(PermutationAction):
    """Permutations of a vocabulary: on texts (integer token ids) and on scores over it (floats [..., vocabulary])."""

    @classmethod
    def swapping(cls, vocabulary: Sequence[str], pairs: Sequence[tuple[str, str]]) -> TokenAction:
        """Return the group of order two that swaps the words of every pair and leaves all others.

        Raises:
            ModelError: If a word is not in the vocabulary, or in two pairs.
        """
        order = {word: index for index, word in enumerate(vocabulary)}
        swap = list(range(len(vocabulary)))
        for pair in pairs:
            for word in pair:
                if word not in order or swap[order[word]] != order[word]:
                    known = "is in two pairs" if word in order else "is not in the vocabulary"
                    raise ModelError(f"word {word!r} {known}. Every pair needs two known words of its own.")
            first, second = (order[word] for word in pair)
            swap[first], swap[second] = second, first
        return cls(generated([swap]), "swap")

    def act(self, index: int, inputs: Tensor) -> Tensor:
        """Return the text with its words replaced, or the scores with their places exchanged.

        Raises:
            ModelError: If scores are not as wide as the vocabulary, or an id lies outside of it.
        """
        if inputs.dtype.is_floating_point:
            if inputs.shape[-1] != self.degree:
                raise ModelError(
                    f"group {self.name}: scores over {inputs.shape[-1]} tokens, expected {self.degree}. "
                    "Give scores over the whole vocabulary on the last axis."
                )
            return inputs[..., list(_inverted(self.permutations[index]))]
        if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < self.degree:
            raise ModelError(
                f"group {self.name}: token ids {int(inputs.min())} to {int(inputs.max())}, expected 0 to "
                f"{self.degree - 1}. Check the tokenizer."
            )
        return torch.tensor(self.permutations[index], device=inputs.device, dtype=inputs.dtype)[inputs.long()]

    def undo(self, index: int, features: Tensor) -> Tensor:
        """Return the words or scores put back."""
        return self.act(self.inverse(index), features)


def generated(generators: Sequence[Sequence[int]]) -> tuple[Permutation, ...]:
    """Return all permutations that products of ``generators`` give, the identity first.

    Raises:
        ModelError: If a generator is no permutation, none is given, or the group has more than 1024 elements.
    """
    if not generators:
        raise ModelError("a group needs at least one generator. Give one permutation.")
    steps = [tuple(one) for one in generators]
    for one in steps:
        _require_permutation(one, len(steps[0]), "generated")
    found = [tuple(range(len(steps[0])))]
    seen = set(found)
    for element in found:
        for step in steps:
            new = _composed(step, element)
            if new not in seen:
                found.append(new)
                seen.add(new)
        if len(found) > _LARGEST:
            raise ModelError(f"the group has more than {_LARGEST} elements. Use fewer generators.")
    return tuple(found)


def _composed(outer: Permutation, inner: Permutation) -> Permutation:
    return tuple(outer[place] for place in inner)


def _inverted(one: Permutation) -> Permutation:
    order = [0] * len(one)
    for start, end in enumerate(one):
        order[end] = start
    return tuple(order)


def _require_permutation(one: Permutation, degree: int, name: str) -> None:
    if sorted(one) != list(range(degree)):
        raise ModelError(f"group {name}: {one} is no permutation of 0 to {degree - 1}. Name every place once.")
