"""HSTU's published experiment on a synthetic stream: one pass, HSTU beside a Transformer.

The protocol of Zhai et al. (ICML 2024, section 4.1): a million records of 128 items (`bench.streams.synthetic`) in
order, the first nine tenths of which are learned once, each record as a whole; of the others the last item is to be
predicted from the 127 before it, among all 20,000. HSTU without relative biases against a Transformer of the same depth
and width, in the configuration of `bench.published`, without dropout, since nothing is seen twice.

"own frequent" ranks a record's items by how often they came, at random among equals. It learns nothing, and is the
limit of HR@10 for every network: a Dirichlet process repeats itself in just that way.

``--state`` is written at the end and every hundred blocks, and resumed from: a long run can be made in pieces of
``--seconds``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.options import parser_of
from bench.output.report import report
from bench.published import BETAS, EPS, LR, NEGATIVES, WIDTH, Experiment, ItemNetwork, device_name, published_layer
from bench.streams.synthetic import BLOCK, LENGTH, NUM_ITEMS, Records
from kernels import hstu_layer
from model.config import ModelConfig
from model.layers import Layer

NUM_RECORDS, QUICK_RECORDS, LEARNED_SHARE, NUM_LAYERS = 1_000_000, 4_000, 0.9, 2
PUBLISHED = {"hstu": (0.0893, 0.3170), "transformer": (0.0442, 0.2025)}
"""HR@10 and HR@50 by network."""
CUTS = (10, 50)
SAVE_EVERY, MOST_TESTED = 100, 200
"""How many blocks lie between two states; about how many of the last tenth are predicted, evenly spaced."""


class Network(ItemNetwork):
    """Items and learned positions, then layers of one kind; queries of the items' width."""

    def __init__(self, network: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.item_VD = nn.Parameter(nn.init.trunc_normal_(torch.empty(NUM_ITEMS, WIDTH), std=0.02))
        self.position_LD = nn.Parameter(nn.init.trunc_normal_(torch.empty(LENGTH, WIDTH), std=WIDTH**-0.5))
        self.is_hstu = network == "hstu"
        shape = ModelConfig(model_width=WIDTH, num_heads=1, qk_width=WIDTH, value_width=WIDTH)
        self.layers = nn.ModuleList(
            published_layer(shape, has_biases=False) if self.is_hstu
            else nn.TransformerEncoderLayer(
                WIDTH, 1, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(NUM_LAYERS)
        )  # fmt: skip
        self.norm = nn.Identity() if self.is_hstu else nn.LayerNorm(WIDTH)

    def forward(self, item_BL: Tensor) -> Tensor:
        """(B, L, WIDTH) the query after each item."""
        num, length = item_BL.shape
        x_BLM = self.item_VD[item_BL] * WIDTH**0.5 + self.position_LD[:length]
        offsets_B1 = torch.arange(num + 1, device=item_BL.device) * length
        mask_LL = nn.Transformer.generate_square_subsequent_mask(length, device=item_BL.device)
        for layer in self.layers:
            if isinstance(layer, Layer):
                y_TM = hstu_layer(
                    x_BLM.flatten(0, 1), layer.params(), offsets_B1, num_heads=1, norm_len=float(LENGTH), eps=EPS
                )
                x_BLM = y_TM.view(num, length, WIDTH)
            else:
                x_BLM = layer(x_BLM, src_mask=mask_LL, is_causal=True)
        query_BLM: Tensor = self.norm(x_BLM)
        return query_BLM


class OnePass(Experiment):
    """A network, its optimiser, and how many blocks of records it has learned (``num_steps``)."""

    def __init__(self, network: str, records: Records, *, seed: int, device: str, batch: int = BLOCK) -> None:
        """``batch``: how many records make a step."""
        self.records, self.seed, self.device, self.batch = records, seed, torch.device(device), batch
        self.model = Network(network, seed).to(self.device)
        self.optimiser = torch.optim.AdamW(
            [each for each in self.model.parameters() if each.requires_grad], lr=LR, betas=BETAS, weight_decay=0.0
        )
        self.num_epochs, self.num_steps = 0, 0
        self.num_learned = int(LEARNED_SHARE * records.num_records) // BLOCK
        self.history: list[dict[str, float]] = []

    def learn(self) -> float:
        """Learn the next block; the mean loss."""
        torch.manual_seed(self.seed * 1_000_003 + self.num_steps)
        item_BL = torch.from_numpy(self.records.block(self.num_steps)).to(self.device)
        self.num_steps += 1
        return float(np.mean([self._step(part_BL) for part_BL in torch.split(item_BL, self.batch)]))

    def _step(self, item_BL: Tensor) -> float:
        query_TM, target_T = self.model(item_BL[:, :-1]).flatten(0, 1), item_BL[:, 1:].reshape(-1)
        negatives_TS = torch.randint(NUM_ITEMS, (len(target_T), NEGATIVES), device=self.device)
        return self.descend(query_TM, target_T, negatives_TS)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """HR@10 and HR@50 of the last items, of the network and of the record's own counts."""
        hits: dict[str, list[NDArray[np.float64]]] = {}
        table_VD = nn.functional.normalize(self.model.item_VD, dim=1)
        rest = range(self.num_learned, self.records.num_blocks)
        for number in rest[:: max(1, len(rest) // MOST_TESTED)]:
            item_BL = self.records.block(number)
            query_BD = self.model(torch.from_numpy(item_BL[:, :-1]).to(self.device))[:, -1]
            score_BV = (nn.functional.normalize(query_BD, dim=1) @ table_VD.T).cpu().numpy()
            for cut in CUTS:
                hits.setdefault(f"hr{cut}", []).append(hit_chances(score_BV, item_BL[:, -1], cut))
                hits.setdefault(f"own_hr{cut}", []).append(hit_chances(counts(item_BL), item_BL[:, -1], cut))
        return {name: float(np.concatenate(each).mean()) for name, each in hits.items()}


def counts(item_BL: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B, V) how often each item came before the last one."""
    count_BV = np.zeros((len(item_BL), NUM_ITEMS))
    np.add.at(count_BV, (np.arange(len(item_BL))[:, None], item_BL[:, :-1]), 1.0)
    return count_BV


def hit_chances(score_BV: NDArray[Any], target_B: NDArray[np.int64], cut: int) -> NDArray[np.float64]:
    """(B,) the chance that the target is among the first ``cut``, with equal scores in random order."""
    mine_B1 = np.take_along_axis(score_BV, target_B[:, None], axis=1)
    better_B, equal_B = (score_BV > mine_B1).sum(axis=1), (score_BV == mine_B1).sum(axis=1)
    return np.asarray(np.clip((cut - better_B) / equal_B, 0.0, 1.0))


def rows_of(network: str, experiment: OnePass) -> list[dict[str, Any]]:
    """HR@10 and HR@50 beside what was published, and the limit."""
    found, rows = experiment.evaluate(), list[dict[str, Any]]()
    note = f"after {experiment.num_steps * BLOCK:,} of {experiment.records.num_records:,} records"
    for cut, published in zip(CUTS, PUBLISHED[network], strict=True):
        value = round(found[f"hr{cut}"], 4)
        rows.append({"name": f"synthetic, one pass: {network}", "value": value, "unit": f"HR@{cut}",
                     "target": published, "met": value >= published, "note": note})  # fmt: skip
    for cut in CUTS:
        rows.append({"name": "synthetic, one pass: own frequent", "value": round(found[f"own_hr{cut}"], 4),
                     "unit": f"HR@{cut}", "note": "the limit"})  # fmt: skip
    return rows


def learn(experiment: OnePass, network: str, state: Path | None, seconds: float) -> None:
    """Continue the pass from ``state``, for as long as ``seconds`` allow, and write it there."""
    started = time.monotonic()
    if state and state.is_file():
        experiment.load(state)
    while experiment.num_steps < experiment.num_learned and time.monotonic() - started < seconds:
        loss = experiment.learn()
        if experiment.num_steps % SAVE_EVERY == 0:
            print(f"{network}: {experiment.num_steps:,} of {experiment.num_learned:,} blocks, loss {loss:.3f}, "
                  f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
            if state:
                experiment.save(state)
    if state:
        experiment.save(state)


def command(arguments: list[str]) -> int:
    """The options, and the report."""
    parser = parser_of("published_stream", __doc__)
    parser.add_argument("--network", default="hstu", choices=list(PUBLISHED))
    parser.add_argument("--records", type=int, default=NUM_RECORDS, metavar="N")
    parser.add_argument("--batch", type=int, default=BLOCK, metavar="N", help=f"records a step, at most {BLOCK}")
    parser.add_argument("--seed", type=int, default=1, help="of the stream and of the weights")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="learn nothing more after this long")
    parser.add_argument("--state", type=Path, help="written now and then, and resumed from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    records = Records(QUICK_RECORDS if options.quick else options.records, options.seed)
    experiment = OnePass(
        options.network, records, seed=options.seed, device=options.device, batch=options.batch
    )  # fmt: skip
    learn(experiment, options.network, options.state, options.seconds)
    return report(
        "published_stream", arguments, rows_of(options.network, experiment), options.out,
        device=device_name(experiment.device),
    )  # fmt: skip
