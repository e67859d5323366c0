"""Recurrent layers and cells, and their states."""

# Calling a module is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.parts import HEAD
from tests.networks.registry import TOKENS, Inputs, network, normal


@network(
    TOKENS,
    "lstm.weight_ih_l0:0 lstm.weight_hh_l0:0 lstm.weight_hh_l0:1 lstm.bias_ih_l0:0 head.weight:1",
    {**HEAD, "lstm.weight_ih_l0:1": "input"},
)
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


@network(TOKENS, "a.weight:0 gru.weight_ih_l0:1 gru.weight_ih_l0_reverse:0 gru.weight_hh_l1:1 head.weight:1", HEAD)
class BidirectionalGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gru, self.head = (
            nn.Linear(6, 7),
            nn.GRU(7, 5, 2, batch_first=True, bidirectional=True),
            nn.Linear(10, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.a(x))[0][:, -1])


@network(TOKENS, "a.weight:0 cell.weight_ih:0 cell.weight_hh:0 cell.weight_hh:1 cell.bias_hh:0 head.weight:1", HEAD)
class RecurrentCell(nn.Module):
    """A GRU cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.head = nn.Linear(6, 7), nn.GRUCell(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        state = self.cell(x[:, 0])
        for step in range(1, 3):
            state = self.cell(x[:, step], state)
        return self.head(state)


@network(TOKENS, "one.weight_hh:0 other.weight_ih:1 other.bias_hh:0 head.weight:1", HEAD)
class LstmCell(nn.Module):
    """Two cells on top of each other, the lower one without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.LSTMCell(6, 7, bias=False), nn.LSTMCell(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x[:, 0]), None
        for t in range(1, x.shape[1]):
            one = self.one(x[:, t], one)
            other = self.other(one[0], other)
        assert other is not None
        return self.head(other[0])


@network(TOKENS, "project.weight:0 cell.weight_ih:0 cell.weight_hh:1 head.weight:1", HEAD, zero_keeps=False)
class SlotCell(nn.Module):
    """Slot attention: the samples of the cell are learned slots, all of one batch in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.project = nn.Parameter(torch.zeros(1, 3, 5)), nn.Linear(6, 5)
        self.cell, self.head = nn.GRUCell(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        slots = self.slots.expand(x.shape[0], -1, -1)
        keys = self.project(x)
        for _ in range(2):
            updates = (slots @ keys.transpose(1, 2)).softmax(1) @ keys
            slots = self.cell(updates.flatten(0, 1), slots.flatten(0, 1)).view(-1, 3, 5)
        return self.head(slots.mean(1))


@network(TOKENS, "gru.weight_hh_l0:0 gru.weight_ih_l1:1 head.weight:1", {**HEAD, "start:0": "layer"})
class LearnedStart(nn.Module):
    """An initial state that is a parameter: its first dimension counts layers, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.start = nn.GRU(6, 5, 2, batch_first=True), nn.Parameter(torch.zeros(2, 1, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0][:, -1])


@network(Inputs((normal(2, 5, 6), normal(2, 1, 5, seed=1))), "a.weight:0", {"lstm.weight_hh_l0:0": "meets", **HEAD})
class GivenState(nn.Module):
    """The caller's initial state is as wide as the units, which therefore stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.head = nn.Linear(6, 7), nn.LSTM(7, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        h = state.transpose(0, 1).contiguous()
        return self.head(self.lstm(self.a(x), (h, torch.zeros_like(h)))[0][:, -1])


@network(TOKENS, "a.weight:0 head.weight:1", HEAD)
class SingleUnits(nn.Module):
    """Recurrent layers with one hidden unit, by module and by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.lstm = nn.Linear(6, 5), nn.RNN(5, 1, batch_first=True), nn.LSTM(5, 1, batch_first=True)
        self.cell, self.head = nn.GRUCell(5, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        last = [self.rnn(x)[0][:, -1], self.lstm(x)[0][:, -1], self.cell(x[:, 0], self.cell(x[:, 1]))]
        return self.head(torch.cat((*last, x.mean(1)), 1))


@network(Inputs((normal(2, 6),)), "a.weight:0 gru.weight_hh_l0:0", {"places:1": "step"}, zero_keeps=False)
class LearnedSteps(nn.Module):
    """The steps of a recurrent layer are places that a parameter tells apart; none can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.a = nn.Parameter(torch.zeros(1, 7, 6)), nn.Linear(6, 5)
        self.gru, self.head = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.a(x[:, None].expand(-1, 7, -1) * self.places))[0].mean(1))
