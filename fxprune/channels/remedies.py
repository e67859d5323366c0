"""What somebody can do about a channel that stays: a sentence for each kind of reason."""

from __future__ import annotations

_REMEDIES = (
    ("the model returns it", "Outputs stay as they are; leave one out of what the model returns if nobody reads it."),
    ("outside of the captured regions", "Move what reads it into a module whose forward pass can be captured."),
    ("no rule for", "Add a rule for it (README, How to add to it), or spell it with operations that have one."),
    ("meets the model's input", "A layer between the input and this operation would set its channels free."),
    ("order of the indices", "Sort or pick along another dimension, or put a layer behind it that mixes the channels."),
    ("position of the extreme value", "The result is an index; put a layer in front that the positions may refer to."),
    ("picked by number", "Take channels with split or a slice instead of a single index."),
    ("overwritten by number", "Write whole slices, or concatenate the parts instead."),
    ("cut out by narrow", "Write a slice with constant bounds instead of narrow."),
    ("taken apart one by one", "Use split or chunk instead of unbind."),
    ("which expert", "Their widths can go; an expert can only where the router is made for fewer."),
    ("Fourier transform", "Transform over tokens or space, or put a layer behind it that mixes the channels."),
    ("coordinate", "It says where to look, not what is there; remove channels of what is looked at."),
    ("step or sample", "Recurrent layers lose hidden units and inputs, not steps."),
    ("layer, direction or sample", "Recurrent layers lose hidden units and inputs, not layers."),
    ("place of an index", "Keep all of the matrix, or a triangle that ends at its diagonal."),
    ("picked by value", "What is looked up by position stays; put a layer behind it that mixes these channels."),
    ("random number", "Draw noise in training alone (if self.training), so that the captured graph has none."),
    ("known only at run time", "Make the number a constant of the model's code."),
    ("at other batch sizes", "Keep the batch as a dimension of its own in this reshape."),
    ("no common factors", "Reshape in two steps, so that each splits or joins whole dimensions."),
    ("batch, space or sequence", "It meets values without channels; give these a channel dimension of their own."),
    ("looked up by id", "Rows of an embedding are words; remove words from the vocabulary instead."),
    ("indexed by a", "Index by a constant list of positions (a buffer)."),
    ("other than zeros", "Pad channels with zeros."),
    ("spreads it over space", "Only whole groups of taps can go; remove channels behind it."),
    (
        "reads an input that carries no channels",
        "It reads tokens, space or a raw input; there is no layer that makes them.",
    ),
    ("no trained parameter", "Nothing that is trained makes these channels."),
    ("one has to stay", "Widths cannot become zero; remove the layer instead."),
    ("read as a number", "Keep the tensor a tensor; item() fixes it to one value."),
)


def remedy(reason: str) -> str:
    """Return what can be changed in a model so that a reason for staying is gone; "" where nothing is known."""
    return next((advice for part, advice in _REMEDIES if part in reason), "")
