"""Products of two values, written as matrices, as attention or as a sum over letters: what is summed over is tied."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import fx

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.same import broadcast
from fxprune.channels.rules.table import Flow, Held, argument_of, packets, rule


def _product(flow: Flow, one: tuple[Axes, tuple[int, ...]], other: tuple[Axes, tuple[int, ...]]) -> Axes:
    (a, sa), (b, sb) = one, other
    flow.meet(a[-1], b[-2] if len(b) > 1 else b[-1])
    lead: tuple[int, ...] = torch.broadcast_shapes(sa[:-2], sb[:-2])  # type: ignore[no-untyped-call]
    batch = broadcast(flow, [(a[:-2], sa[:-2]), (b[:-2], sb[:-2])], tuple(lead))
    for axis in batch:
        if axis is not None:
            flow.labels.heads.append(axis)
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*batch, *rows, *columns)


@rule(*packets("matmul", "bmm", "mm", "mv", "dot", "vdot"), held=Held.LOST)
def matmul(flow: Flow, node: fx.Node) -> Axes:
    """Ties what is summed over and the batch dimensions of both operands; rows and columns go on."""
    a, b = node.args[:2]
    return _product(flow, (flow.axes(a), flow.shape(a)), (flow.axes(b), flow.shape(b)))


@rule(*packets("addmm", "baddbmm", "addbmm"), held=Held.LOST)
def addmm(flow: Flow, node: fx.Node) -> Axes:
    """A product whose result meets the added operand, after broadcasting."""
    bias, a, b = node.args[:3]
    found = _product(flow, (flow.axes(a), flow.shape(a)), (flow.axes(b), flow.shape(b)))
    shape = flow.shape(node)
    return broadcast(flow, [(found, shape), (flow.axes(bias), flow.shape(bias))], shape)


@rule(*packets("scaled_dot_product_attention"), held=Held.LOST)
def attention(flow: Flow, node: fx.Node) -> Axes:
    """Ties the widths of query and key, and the heads of all three; the tokens that are read stay, like the causal."""
    q, k, v = node.args[:3]
    aq, ak, av = flow.axes(q), flow.axes(k), flow.axes(v)
    sq, sk, sv = flow.shape(q), flow.shape(k), flow.shape(v)
    flow.meet(aq[-1], ak[-1])
    for axis in (ak[-2], av[-2]):
        flow.freeze(axis, "a token that attention reads has a share in every softmax")
    if argument_of(node, "is_causal"):
        flow.freeze(aq[-2], "what a token of causal attention reads follows from its position")
    outer = 2
    if min(len(aq), len(ak)) > 2 and 1 not in (sq[-3], sk[-3]) and sq[-3] != sk[-3]:
        outer = 3  # each key head serves several query heads
        _grouped_heads(flow, aq[-3], ak[-3], (sq[-3], sk[-3]))
        flow.meet(ak[-3], av[-3])
    sizes: tuple[int, ...] = torch.broadcast_shapes(sq[:-outer], sk[:-outer], sv[:-outer])  # type: ignore[no-untyped-call]
    operands = [(aq[:-outer], sq[:-outer]), (ak[:-outer], sk[:-outer]), (av[:-outer], sv[:-outer])]
    lead = (*broadcast(flow, operands, tuple(sizes)), *aq[-outer:-2])
    for axis in (*aq[:-2], *ak[:-2]):
        if axis is not None:
            flow.labels.heads.append(axis)
    mask = argument_of(node, "attn_mask")
    scores = (*flow.shape(node)[:-1], sk[-2])
    if isinstance(mask, fx.Node):
        broadcast(flow, [(flow.axes(mask), flow.shape(mask)), ((*lead, aq[-2], None), scores)], scores)
    return (*lead, aq[-2], av[-1])


def _grouped_heads(flow: Flow, queries: Axis | None, keys: Axis | None, sizes: tuple[int, int]) -> None:
    rows, rest = None, None
    if queries is not None:
        rows, rest = flow.labels.split(queries, (sizes[1], sizes[0] // sizes[1]), flow.place)
    flow.freeze(rest, "every key head serves the same number of query heads")
    flow.meet(rows, keys)


def _spelled_out(equation: str, ndims: list[int]) -> tuple[str, str]:
    """Return the operands and the result of an einsum with letters for every dimension, where it leaves some out.

    An ellipsis stands for the leading dimensions that are not named, aligned at their end; without an arrow the result
    has the letters that occur once, in alphabetical order, after the ellipsis.
    """
    terms, arrow, result = equation.partition("->")
    listed = terms.split(",")
    if not arrow:
        once = sorted(letter for letter in set(terms) - set(",.") if terms.count(letter) == 1)
        result = ("..." if "..." in terms else "") + "".join(once)
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [
        ndim - len(term.replace("...", "")) if "..." in term else 0 for term, ndim in zip(listed, ndims, strict=True)
    ]
    hidden = "".join(free[: max(widths, default=0)])
    filled = [term.replace("...", hidden[len(hidden) - width :]) for term, width in zip(listed, widths, strict=True)]
    return ",".join(filled), result.replace("...", hidden)


@rule(*packets("einsum"), held=Held.LOST)
def einsum(flow: Flow, node: fx.Node) -> Axes:
    """Dimensions under one letter are tied; the letters of the result go on."""
    operands: Any = node.args[1]
    equation = str(node.args[0]).replace(" ", "")
    terms, result = _spelled_out(equation, [len(flow.shape(operand)) for operand in operands])
    found: dict[str, Axis | None] = {}
    seen: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        if len(set(term)) != len(term):
            return flow.freeze_all(node, "an einsum that takes a diagonal")  # type: ignore[no-any-return]
        for letter, axis, size in zip(term, flow.axes(operand), flow.shape(operand), strict=True):
            if size == 1:
                found.setdefault(letter, None)
                continue
            found[letter] = flow.meet(found[letter], axis) if letter in seen else axis
            seen[letter] = size
    for letter in result:  # letters of every operand and of the result are batch letters: heads in attention
        if found[letter] is not None and all(letter in term for term in terms.split(",")):
            flow.labels.heads.append(found[letter])  # type: ignore[arg-type]
    return tuple(found[letter] for letter in result)
