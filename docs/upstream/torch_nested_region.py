"""torch: a nested compile region is reused for a module that has another object where the others share one.

Five of six layers share a table, and one has another. `nested_compile_region` traces the first layer, checks the guards
of the next ones, and reuses the graph. An object that was met through an earlier layer has no guard of its own: it is
taken for a constant, and the layer with another table computes with the shared one. Nothing is said.

Run: python docs/upstream/torch_nested_region.py
"""

from __future__ import annotations

import torch
from torch import nn


class Table(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((4,), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.values


class Layer(nn.Module):
    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table, self.weight = table, nn.Parameter(torch.rand(4))

    @torch.compiler.nested_compile_region
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.table(x) + self.weight)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide, narrow = Table(2.0), Table(0.5)
        self.layers = nn.ModuleList(Layer(table) for table in (wide, wide, wide, wide, narrow, wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def main() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.rand(2, 4)
    eager, compiled = model(x), torch.compile(model, backend="eager", fullgraph=True)(x)  # under no_grad they agree
    print(f"torch {torch.__version__}: {'same answers' if torch.equal(eager, compiled) else 'ANOTHER ANSWER'}")
    print(eager[0].tolist(), compiled[0].tolist(), sep="\n")


if __name__ == "__main__":
    main()
