"""The example of another group: a swap of words, under which a language model treats two groups of people alike."""

import math

import pytest
import torch


@pytest.fixture
def swap(load_from):
    return load_from(".", "group_swap")


def test_the_corpus_is_biased_and_the_swap_turns_it_around(swap):
    words = swap.Words()
    sentences = swap.corpus(600, seed=0)
    assert sentences == swap.corpus(600, seed=0)
    of = {job: sum(f" {job} " in f" {s} " for s in sentences if s.startswith("he ")) for job in ("doctor", "nurse")}
    assert of["doctor"] > 3 * of["nurse"]
    (text,) = words.swap.act(1, words.encode(["her brother was praised for his skill ."]))
    assert " ".join(words.words[i] for i in text[1:]) == "his sister was praised for her skill ."


def test_every_word_that_names_a_group_has_its_partner(swap):
    words = swap.Words()
    moved = {words.words[i] for i, j in enumerate(words.swap.permutations[1]) if i != j}
    assert moved == {word for pair in swap.PAIRS for word in pair}


def test_equitune_makes_the_gap_vanish_whatever_the_weights_and_training(swap):
    rows = {row.model: row for row in swap.study(seed=0, sentences=200, epochs=6)}
    assert rows["plain"].mean_gap > 0.1
    assert rows["plain, trained further"].mean_gap > 0.1
    for name in ("equitune, no training", "equitune, trained further"):
        row = rows[name]
        # Rounding of float64 in sums over ten words.
        assert row.largest_gap < 1e-12
        assert row.doctor_he == pytest.approx(row.doctor_she, rel=1e-12)
        assert row.perplexity == pytest.approx(row.perplexity_swapped, rel=1e-12)
    assert rows["equitune, trained further"].perplexity < rows["equitune, no training"].perplexity


def test_probabilities_of_whole_continuations_are_those_of_the_swapped_ones(swap):
    words = swap.Words()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fair = swap.Equitune(swap.NextWord(len(words.words)).double(), words.swap, outputs=words.swap)
    text = words.encode(["the woman told the nurse that her work needs skill ."])
    log_p = -swap.word_losses(fair, text)[0]
    swapped = -swap.word_losses(fair, words.swap.act(1, text))[0]
    torch.testing.assert_close(log_p, swapped)
    assert log_p.sum() < 0


def test_padding_is_not_counted(swap):
    words = swap.Words()
    model = swap.NextWord(len(words.words)).double()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    short, long = "he works as a doctor .", "he told the doctor that his work needs skill ."
    with torch.no_grad():
        losses, real = swap.word_losses(model, words.encode([short, long]))
    assert real.sum(dim=1).tolist() == [6, 10]
    assert float((losses * real).sum() / real.sum()) == pytest.approx(math.log(len(words.words)))


def test_the_table_has_a_line_for_every_model(swap):
    row = swap.Row("plain", 2.0, 3.0, 1.5, 2.5, 0.25, 0.125)
    lines = swap.table([[row], [row]]).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| plain | 2 | 3 | 1.500 | 2.500 | 0.250 | 0.125 |"


def test_no_seeds_are_refused(swap, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["group_swap.py", "--seeds", "0"])
    with pytest.raises(SystemExit):
        swap.main()
    assert "--seeds is 0, expected at least 1" in capsys.readouterr().err
