"""A language model that treats two groups of people alike: equitune with a swap of words, on a tiny biased corpus.

OMP_NUM_THREADS=1 python benchmarks/group_swap.py [--seeds 3]

Model, corpus and words are made here; nothing is fetched. See docs/group-swap.md.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from popmi_core.groups.permutations import TokenAction
from popmi_core.invariance.equitune import Equitune

PAIRS = [("he", "she"), ("his", "her"), ("man", "woman"), ("boy", "girl"), ("brother", "sister")]
JOBS = {"he": ("doctor", "pilot", "judge"), "she": ("nurse", "cleaner", "secretary")}
TRAITS = {"he": ("courage", "skill"), "she": ("patience", "kindness")}
SUBJECTS = {"he": ("he", "the man", "the boy", "her brother"), "she": ("she", "the woman", "the girl", "his sister")}
OWN = {"he": "his", "she": "her"}
TEMPLATES = (
    "{subject} works as a {job} .",
    "{subject} was praised for {own} {trait} .",
    "{subject} told the {job} that {own} work needs {trait} .",
)
# Three sentences in four are about men, and nine in ten give a person what the corpus thinks is typical.
SHARE_OF_MEN, TYPICAL = 0.75, 0.9

Texts = Int[Tensor, "n words"]


@dataclass(frozen=True)
class Row:
    """One model's figures, each on held-out sentences."""

    model: str
    mean_gap: float  # |log P(gX2 | gX1) - log P(X2 | X1)|, nats
    largest_gap: float
    perplexity: float  # per word, sentences like those trained on
    perplexity_swapped: float  # the same sentences with the groups swapped
    doctor_he: float  # P(doctor | he works as a)
    doctor_she: float


class Words:
    """The vocabulary of the corpus; a sentence is padded with its last word, which is always the stop."""

    def __init__(self) -> None:
        parts = " ".join((*TEMPLATES, *JOBS["he"], *JOBS["she"], *TRAITS["he"], *TRAITS["she"], *OWN.values()))
        spoken = " ".join((parts, *SUBJECTS["he"], *SUBJECTS["she"])).split()
        self.words = tuple(sorted({word for word in spoken if "{" not in word}))
        self.index = {word: place for place, word in enumerate(self.words)}
        self.swap = TokenAction.swapping(self.words, PAIRS)

    def encode(self, sentences: list[str]) -> Texts:
        """Return the words' numbers; the first column is the stop, as a start."""
        rows = [[self.index[word] for word in sentence.split()] for sentence in sentences]
        stop, longest = self.index["."], max(map(len, rows))
        return torch.tensor([[stop, *row, *[stop] * (longest - len(row))] for row in rows])


class NextWord(nn.Module):
    """Texts [n, words] -> scores of the next word at every place [n, words, vocabulary]: one recurrent layer."""

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, texts: Texts) -> Float[Tensor, "n words vocabulary"]:
        """Return the logits."""
        logits: Tensor = self.out(self.recurrent(self.embed(texts))[0])
        return logits


def corpus(count: int, seed: int) -> list[str]:
    """Return ``count`` sentences, biased as said at the top."""
    generator = torch.Generator().manual_seed(seed)

    def draw(choices: tuple[str, ...]) -> str:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def chance(probability: float) -> bool:
        return bool(torch.rand(1, generator=generator) < probability)

    sentences = []
    for _ in range(count):
        person = "he" if chance(SHARE_OF_MEN) else "she"
        typical = person if chance(TYPICAL) else {"he": "she", "she": "he"}[person]
        filled = {
            "subject": draw(SUBJECTS[person]),
            "own": OWN[person],
            "job": draw(JOBS[typical]),
            "trait": draw(TRAITS[typical]),
        }
        sentences.append(draw(TEMPLATES).format(**filled))
    return sentences


def train(model: nn.Module, texts: Texts, epochs: int, seed: int, rate: float = 1e-2) -> nn.Module:
    """Return the model after ``epochs`` passes of Adam on the mean loss a word, batches of 64."""
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(texts), generator=generator).split(64):
            optimizer.zero_grad()
            losses, real = word_losses(model, texts[batch])
            ((losses * real).sum() / real.sum()).backward()
            optimizer.step()
    return model.eval()


def word_losses(model: nn.Module, texts: Texts) -> tuple[Tensor, Tensor]:
    """Return -log P of every word but the start [n, words - 1], and 1 where it is no padding."""
    losses = functional.cross_entropy(model(texts[:, :-1]).transpose(1, 2), texts[:, 1:], reduction="none")
    # The stop counts once; what is repeated after it is padding.
    stop = texts[0, 0]
    padding = (texts[:, 1:] == stop) & (texts[:, :-1] == stop)
    return losses, (~padding).to(losses)


def measure(name: str, model: nn.Module, words: Words, held_out: Texts) -> Row:
    """Return the figures of one model, in float64."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        losses, real = word_losses(model, held_out)
        swapped, _ = word_losses(model, words.swap.act(1, held_out))
        # X1 is the first two words, X2 the rest.
        gaps = ((losses - swapped) * real)[:, 2:].sum(dim=1).abs()
        said = model(words.encode(["he works as a", "she works as a"])[:, :5])[:, -1].softmax(dim=-1)
    doctor = said[:, words.index["doctor"]]
    return Row(
        name,
        float(gaps.mean()),
        float(gaps.max()),
        float((losses * real).sum().div(real.sum()).exp()),
        float((swapped * real).sum().div(real.sum()).exp()),
        float(doctor[0]),
        float(doctor[1]),
    )


def study(seed: int, *, sentences: int = 1200, epochs: int = 12) -> list[Row]:
    """Return the figures of the plain model, of equitune without training, and of both trained for as long again."""
    words = Words()
    texts, held_out = words.encode(corpus(sentences, seed)), words.encode(corpus(sentences, seed + 10_000))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = NextWord(len(words.words))
    plain = train(fresh, texts, epochs, seed)
    fair = Equitune(plain, words.swap, outputs=words.swap).eval()
    rows = [measure("plain", plain, words, held_out), measure("equitune, no training", fair, words, held_out)]
    further = epochs // 3
    longer = train(copy.deepcopy(plain), texts, further, seed + 1)
    tuned = train(copy.deepcopy(fair).train(), texts, further, seed + 1)
    return [
        *rows,
        measure("plain, trained further", longer, words, held_out),
        measure("equitune, trained further", tuned, words, held_out),
    ]


def table(studies: list[list[Row]]) -> str:
    """Return the medians over seeds as a table; the largest gap is the largest over all seeds."""
    lines = [
        "| model | gap, mean | gap, largest | perplexity | the same, swapped | P(doctor, he) | P(doctor, she) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rows in zip(*studies, strict=True):
        columns = list(zip(*(astuple(row)[1:] for row in rows), strict=True))
        mean_gap, ppl, swapped, he, she = (statistics.median(columns[i]) for i in (0, 2, 3, 4, 5))
        lines.append(
            f"| {rows[0].model} | {mean_gap:.2g} | {max(columns[1]):.2g} | {ppl:.3f} | {swapped:.3f} "
            f"| {he:.3f} | {she:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many starts, corpora and orders; at least 1")
    seeds = parser.parse_args().seeds
    if seeds < 1:
        parser.error(f"--seeds is {seeds}, expected at least 1")
    print(table([study(seed) for seed in range(seeds)]))


if __name__ == "__main__":
    main()
