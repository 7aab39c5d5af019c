"""Summaries: against numpy on the whole array, and the same bits however the batches are cut and merged."""

import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pytest
import torch

from neuroprobe.exceptions import InputError, UnknownNameError
from neuroprobe.recording import ActivationSummary
from neuroprobe.recording._sums import ExactSums
from neuroprobe.recording.summaries import LayerSummary

pytestmark = pytest.mark.filterwarnings("error")

K = 4


def random_values(kind, seed=0, n=150, units=6):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(n, units))
    if kind == "wide":
        normal *= 10.0 ** rng.uniform(-30, 30, size=normal.shape)
    elif kind == "far from zero":
        normal = 1e6 + normal * 0.1
    elif kind == "ties":
        normal = rng.integers(-2, 3, size=normal.shape) * rng.choice([-1.0, 1.0], size=normal.shape)  # negative zeros too
    elif kind == "subnormal":
        normal *= 1e-42
    elif kind == "huge":
        normal = np.clip(normal, -1, 1) * np.finfo(np.float32).max
    elif kind == "relu":
        normal = np.maximum(normal, 0) * [1, 1, 0, 1, 1e-20, 1]  # one dead unit
    return normal.astype(np.float32)


KINDS = ["normal", "wide", "far from zero", "ties", "subnormal", "huge", "relu"]


def grid(n, size=16):
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def summarize(values, batches, numbers=None, k=K):
    summary = LayerSummary("layer", values.shape[1], k=k)
    for number in range(len(batches)) if numbers is None else numbers:
        summary.update(torch.from_numpy(values[batches[number]]), rows=batches[number], batch=int(number))
    return summary


def assert_same_bits(one, other):
    mine, theirs = one.to_arrays(), other.to_arrays()
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert mine[name].shape == theirs[name].shape
        assert mine[name].tobytes() == theirs[name].tobytes(), name
    assert one.statistics(str).equals(other.statistics(str))


def plain_top(column, k, sign):
    """Rows by value, then by row number."""
    return sorted(range(len(column)), key=lambda row: (-sign * column[row], row))[:k]


@pytest.mark.parametrize("k", [1, K, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_against_plain_code_on_the_whole_array(kind, k):
    values = random_values(kind)
    found = summarize(values, grid(len(values)), k=k).statistics(lambda row: f"image {row}")
    n = len(values)
    for unit, column in enumerate(values.T.astype(float)):
        top, lowest = plain_top(column, k, 1), plain_top(column, k, -1)
        assert found.top_rows[unit].tolist() == top
        assert found.lowest_rows[unit].tolist() == lowest
        assert found.top_values[unit].tolist() == column[top].tolist()
        assert found.lowest_values[unit].tolist() == column[lowest].tolist()
        assert found.top_ids[unit].tolist() == [f"image {row}" for row in top]
        assert found.lowest_ids[unit].tolist() == [f"image {row}" for row in lowest]
        assert found.mean[unit] == pytest.approx(math.fsum(column) / n, rel=1e-15)
        centered = math.fsum((column - math.fsum(column) / n) ** 2) / n
        assert found.variance[unit] == pytest.approx(centered, rel=1e-9)
    assert found.count == n
    assert (found.active == (values > 0).mean(axis=0)).all()
    assert (found.minimum == values.min(axis=0)).all()
    assert (found.maximum == values.max(axis=0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact(kind):
    values = random_values(kind, n=300)  # more rows than a block of the accumulator
    sums, squares = ExactSums(6, power=1), ExactSums(6, power=2)
    for part in np.array_split(values, [1, 200]):
        sums.add(part, np.abs(part).max(axis=0))
        squares.add(part, np.abs(part).max(axis=0))
    for unit, column in enumerate(values.T.astype(float)):
        assert sums.to_integers()[unit] == sum(int(math.ldexp(value, 149)) for value in column)
        assert squares.to_integers()[unit] == sum(int(math.ldexp(value, 149)) ** 2 for value in column)
        assert sums.to_integers()[unit] / 2**149 == math.fsum(column)
        assert squares.to_integers()[unit] / 2**298 == math.fsum(column**2)  # a square has 48 bits: exact in float64


@pytest.mark.parametrize("power", [1, 2])
def test_sums_are_exact_where_a_slice_is_full(power):
    """A full block of rows, one of which is so large that all others are just below half of its slice's last bit."""
    rng, n = np.random.default_rng(0), 60
    just_below = np.sqrt(0.5) * 2.0**-22 if power == 2 else 2.0**-46  # to that power half of 2**(power - 46)
    values = (just_below * (1 - 2.0**-23 - rng.uniform(0, 2.0**-8, size=(128, n)))).astype(np.float32)
    assert (values.astype(float) ** power < 2.0 ** (power - 47)).all()
    values[rng.integers(128, size=n), np.arange(n)] = np.float32(2 - 2.0**-23)
    exact = [sum(Fraction(float(value)) ** power for value in column) * 2 ** (149 * power) for column in values.T]
    for rows in (values, values[::-1], rng.permutation(values)):
        sums = ExactSums(n, power=power)
        sums.add(rows, np.abs(rows).max(axis=0))
        assert sums.to_integers() == exact


def test_words_carry_before_they_overflow(monkeypatch):
    values = random_values("wide", n=40)
    undisturbed, carrying = ExactSums(6, power=2), ExactSums(6, power=2)
    for row in values:
        undisturbed.add(row[None], np.abs(row))
    monkeypatch.setattr("neuroprobe.recording._sums._LAZY_ADDITIONS", 3)
    for row in values:
        carrying.add(row[None], np.abs(row))
    assert (undisturbed.to_array() == carrying.to_array()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_merge_to_the_bits_of_the_whole(kind):
    values = random_values(kind)
    batches = grid(len(values))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, 60))
        whole = summarize(values, batches, k=k)
        numbers = rng.permutation(len(batches))
        cuts = np.sort(rng.integers(0, len(batches) + 1, size=rng.integers(0, 5)))
        parts = [summarize(values, batches, part, k) for part in np.split(numbers, cuts)]  # some are empty
        while len(parts) > 1:  # a random tree
            one = parts.pop(rng.integers(len(parts)))
            other = parts.pop(rng.integers(len(parts)))
            parts.append(one.merge(other))
        assert_same_bits(parts[0], whole)
        assert parts[0].batches == tuple(range(len(batches)))


def test_the_size_of_batches_changes_nothing_but_their_numbers():
    values = random_values("wide")
    fine, coarse = (summarize(values, grid(len(values), size)) for size in (1, 150))
    assert fine.statistics(str).equals(coarse.statistics(str))


def test_ranks_with_alternate_batches_and_a_resumed_one():
    values = random_values("normal")
    batches = grid(len(values))
    ranks = [summarize(values, batches, range(rank, len(batches), 3)) for rank in range(3)]
    resumed = LayerSummary.from_arrays(summarize(values, batches, [0, 3]).to_arrays())
    for number in (6, 9):
        resumed.update(torch.from_numpy(values[batches[number]]), rows=batches[number], batch=number)
    assert_same_bits(resumed, ranks[0])
    assert_same_bits(reduce(LayerSummary.merge, [ranks[2], resumed, ranks[1]]), summarize(values, batches))


def test_merging_changes_neither_part():
    values = random_values("normal")
    batches = grid(len(values))
    one, other = summarize(values, batches, [0, 1]), summarize(values, batches, [2])
    before = one.to_arrays(), other.to_arrays()
    merged = one.merge(other)
    merged.update(torch.from_numpy(values[batches[5]]), rows=batches[5], batch=5)
    for arrays, part in zip(before, (one, other), strict=True):
        assert all(arrays[name].tobytes() == array.tobytes() for name, array in part.to_arrays().items())


def test_worked_by_hand():
    summary = LayerSummary("fc", 2, k=2)
    summary.update(torch.tensor([[1.0, 0.0], [3.0, -2.0]]), rows=[10, 11], batch=0)
    summary.update(torch.tensor([[3.0, -0.0], [5.0, -2.0]]), rows=[4, 5], batch=3)
    found = summary.statistics(lambda row: f"i{row}")
    assert found.top_values.tolist() == [[5, 3], [0, 0]]
    assert found.top_ids.tolist() == [["i5", "i4"], ["i4", "i10"]]  # ties: the lower row; -0.0 is 0.0
    assert found.lowest_values.tolist() == [[1, 3], [-2, -2]]
    assert found.lowest_rows.tolist() == [[10, 4], [5, 11]]
    assert found.mean.tolist() == [3, -1]
    assert found.variance.tolist() == [2, 1]  # (4 + 0 + 0 + 4) / 4, and (1 + 1 + 1 + 1) / 4
    assert found.active.tolist() == [1, 0]
    assert found.count == 4
    assert summary.batches == (0, 3)
    assert set(found.image_ids) == {4, 5, 10, 11}


def test_variance_survives_cancellation():
    summary = LayerSummary("fc", 1, k=1)
    summary.update(torch.tensor([[2.0**24 - 1], [2.0**24 - 2]]), rows=[0, 1], batch=0)
    assert summary.statistics(str).variance.tolist() == [0.25]
    constant = LayerSummary("fc", 1, k=1)
    constant.update(torch.full((7, 1), 0.1), rows=range(7), batch=0)
    assert constant.statistics(str).variance.tolist() == [0]
    assert constant.statistics(str).mean.tolist() == [float(np.float32(0.1))]


def test_k_beyond_the_number_of_images_gives_what_there_is():
    values = random_values("ties", n=5)
    found = summarize(values, grid(5, 2), k=50).statistics(str)
    assert found.top_values.shape == found.lowest_rows.shape == (6, 5)
    assert (np.sort(found.top_rows) == np.arange(5)).all()


def test_a_batch_of_skipped_images_only_counts_as_taken():
    summary = LayerSummary("fc", 2, k=1)
    summary.update(torch.zeros(0, 2), rows=[], batch=7)
    assert (summary.count, summary.batches) == (0, (7,))
    with pytest.raises(InputError, match=r"Expected images in the summary of 'fc', but it has none"):
        summary.statistics(str)


def test_only_the_rows_that_are_kept_are_asked_for():
    asked = []
    found = summarize(random_values("normal", n=150, units=2), grid(150)).statistics(lambda row: asked.append(row) or str(row))
    assert sorted(asked) == sorted(set(found.top_rows.ravel()) | set(found.lowest_rows.ravel()))
    assert len(asked) <= 2 * 2 * K


def held_bytes(thing):
    """Of all arrays in an object, and in its own objects."""
    arrays = [value.nbytes for value in vars(thing).values() if isinstance(value, np.ndarray)]
    return sum(arrays) + sum(held_bytes(value) for value in vars(thing).values() if hasattr(value, "__dict__"))


def test_memory_does_not_grow_with_the_images():
    values = torch.from_numpy(random_values("normal", n=64, units=20))
    summary = LayerSummary("fc", 20, k=K)
    sizes = {held_bytes(summary)}
    for batch in range(300):
        summary.update(values * (batch + 1), rows=np.arange(64) + 64 * batch, batch=batch)
        sizes.add(held_bytes(summary))
    assert sizes == {20 * 8 * (2 * 2 * K + 2 + 10 + 19 + 1)}
    arrays = summary.to_arrays()
    assert arrays.pop("batches").nbytes <= 300 / 8 + 1
    assert sum(array.nbytes for array in arrays.values()) <= 20 * (2 * 8 * K + 4 * (10 + 19) + 8) + 100


def test_wrong_input_is_refused():
    summary = LayerSummary("fc", 2, k=1)
    summary.update(torch.ones(1, 2), rows=[0], batch=0)
    with pytest.raises(InputError, match=r"a batch of 'fc' that is not in the summary yet, but got batch 0. Take each batch once"):
        summary.update(torch.ones(1, 2), rows=[1], batch=0)
    with pytest.raises(InputError, match=r"but got batch -1"):
        summary.update(torch.ones(1, 2), rows=[1], batch=-1)
    with pytest.raises(InputError, match=r"float32 \[n, 2\], but got torch.bfloat16 \(1, 2\)"):
        summary.update(torch.ones(1, 2, dtype=torch.bfloat16), rows=[1], batch=1)
    with pytest.raises(InputError, match=r"float32 \[n, 2\], but got torch.float32 \(1, 3\)"):
        summary.update(torch.ones(1, 3), rows=[1], batch=1)
    with pytest.raises(InputError, match="at least 1, but got 0 and 2"):
        LayerSummary("fc", 2, k=0)
    assert summary.count == 1


def test_parts_that_do_not_belong_together_are_refused():
    part = LayerSummary("fc", 2, k=1)
    part.update(torch.ones(1, 2), rows=[0], batch=5)
    with pytest.raises(InputError, match=r"without a common batch, but both have \(5,\)"):
        part.merge(part)
    for other in (LayerSummary("fc2", 2, k=1), LayerSummary("fc", 3, k=1), LayerSummary("fc", 2, k=2)):
        with pytest.raises(InputError, match=r"Expected summaries of one layer, n_units and k, but got \('fc', 2, 1\)"):
            part.merge(other)


def test_arrays_there_and_back(tmp_path):
    summary = summarize(random_values("wide"), grid(150))
    np.savez(tmp_path / "part.npz", **summary.to_arrays())
    with np.load(tmp_path / "part.npz", allow_pickle=False) as stored:
        again = LayerSummary.from_arrays(stored)
    assert_same_bits(again, summary)
    assert (again.layer, again.k, again.count) == ("layer", K, 150)


@pytest.fixture
def activation_summary():
    layers = {
        name: summarize(random_values("ties", seed, units=5 + seed), grid(150)) for seed, name in enumerate(["features.0", "a/b \u00e9"])
    }
    statistics = {name: layer.statistics(lambda row: f"bild_{row}.jpg") for name, layer in layers.items()}
    return ActivationSummary(statistics, {"model": "abc", "skipped": {"x.jpg": "no image"}})


def test_activation_summary_reads_like_activations(activation_summary):
    assert activation_summary.layers == ("features.0", "a/b \u00e9")
    assert activation_summary["features.0"].top_values.shape == (5, K)
    assert repr(activation_summary) == "ActivationSummary(150 images; units features.0: 5, a/b \u00e9: 6)"
    with pytest.raises(UnknownNameError, match=r"Expected a recorded layer, but got 'features.1'. Did you mean 'features.0'"):
        activation_summary["features.1"]


def test_save_and_load(activation_summary, tmp_path):
    path = tmp_path / "summary.npz"
    activation_summary.save(path)
    activation_summary.save(path)  # replaces
    again = ActivationSummary.load(path)
    assert again.equals(activation_summary)
    assert again["features.0"].top_ids.tolist() == activation_summary["features.0"].top_ids.tolist()
    assert not again.equals(ActivationSummary(activation_summary.statistics, {"model": "abd"}))
    assert [file.name for file in tmp_path.iterdir()] == ["summary.npz"]


def test_a_save_that_fails_leaves_the_old_file(activation_summary, tmp_path, monkeypatch):
    path = tmp_path / "summary.npz"
    activation_summary.save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="Expected metadata that JSON can hold"):
        ActivationSummary(activation_summary.statistics, {"model": object()}).save(path)

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        activation_summary.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["summary.npz"]


def test_a_damaged_file_is_refused(activation_summary, tmp_path):
    path = tmp_path / "summary.npz"
    activation_summary.save(path)
    data = path.read_bytes()
    other = tmp_path / "other.npz"
    np.savez(other, manifest=np.frombuffer(b'{"format": "something 2"}', np.uint8))
    for content in (data[:-100], data[: len(data) // 2], b"", b"no archive", other.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"Expected a file of `ActivationSummary.save`, but got .* Make it anew"):
            ActivationSummary.load(path)
    with pytest.raises(FileNotFoundError):
        ActivationSummary.load(tmp_path / "missing.npz")


def test_a_flipped_byte_is_never_read_as_something_else(activation_summary, tmp_path):
    path = tmp_path / "summary.npz"
    activation_summary.save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            assert ActivationSummary.load(path).equals(activation_summary)  # a date in the archive, say
        except InputError:
            refused += 1
    assert refused > 100
