"""Mixtures: which tasks, which rows, in which shape, on which process."""

import itertools

import jax
import numpy as np
import pytest

import peft_jax as pj
from peft_jax import objectives
from peft_jax.errors import InputError
from peft_jax.examples import ChoiceExamples
from peft_jax.mixtures import MixtureSampler, mixing_rates
from peft_jax.text_examples import TextExamples, TextRow

VOCABULARY = "a" * 64


def choices_task(name, num_examples, templates, inputs, choices, length, **options):
    """Rows of random lengths; in no order of their examples."""
    random = np.random.default_rng([len(name), num_examples])
    pairs = list(itertools.product(range(num_examples), range(templates)))
    random.shuffle(pairs)
    rows = len(pairs)
    tokens = np.zeros((rows, inputs), np.int32)
    answers = np.zeros((rows, choices, length), np.int32)
    for row in range(rows):
        n = random.integers(1, inputs + 1)
        tokens[row, :n] = random.integers(1, 50, n)
        for choice in range(random.integers(2, choices + 1)):
            n = random.integers(1, length + 1)
            answers[row, choice, :n] = random.integers(1, 50, n)
    fields = {
        "task": name,
        "split": "train",
        "template_names": tuple(f"template {t}" for t in range(templates)),
        "encoder_input_tokens": tokens,
        "choices": answers,
        "choice_mask": answers.any(axis=2),
        "label": random.integers(0, 2, rows).astype(np.int32),
        "example": np.array([e for e, _ in pairs], np.int32),
        "template": np.array([t for _, t in pairs], np.int32),
        "vocabulary": VOCABULARY,
    }
    return ChoiceExamples(**fields | options)


def texts_task(name, num_examples, templates, longest, **options):
    random = np.random.default_rng(num_examples)
    rows = [
        TextRow(
            random.integers(1, 50, random.integers(1, longest)),
            random.integers(1, 50, random.integers(1, 5)),
            e,
            t,
        )
        for e in range(num_examples)
        for t in range(templates)
    ]
    names = tuple(f"template {t}" for t in range(templates))
    fields = {"task": name, "split": "train", "template_names": names, "vocabulary": VOCABULARY}
    return TextExamples.from_rows(rows, **fields | options)


CHOICES = [
    choices_task("small", 5, 3, inputs=9, choices=2, length=3),
    choices_task("many", 12, 1, inputs=4, choices=5, length=2),
    choices_task("long", 7, 2, inputs=24, choices=3, length=6),
]
TEXTS = [texts_task("short", 6, 2, 5), texts_task("wide", 9, 1, 16)]
ALL = {"choices": CHOICES, "texts": TEXTS}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, other[key], err_msg=key)


# --------------------------------------------------------------------------------------------
# Which rows
# --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tasks", ALL)
def test_a_sampler_goes_on_exactly_where_its_state_says(tasks):
    sampler = MixtureSampler(ALL[tasks], 4, seed=3)
    batches = [next(sampler) for _ in range(6)]
    again = MixtureSampler(ALL[tasks], 4, seed=3)
    for _ in range(2):
        next(again)
    resumed = MixtureSampler(ALL[tasks], 4, seed=3)
    resumed.restore(again.state)
    for batch in batches[2:]:
        assert_same(next(resumed), batch)
    other = [MixtureSampler(ALL[tasks], 4, seed=4).drawn(k)[1].tolist() for k in range(6)]
    assert other != [batch["row"].tolist() for batch in batches]


def test_a_state_of_other_data_is_refused():
    state = MixtureSampler(CHOICES, 4, seed=0).state
    with pytest.raises(InputError, match="other data"):
        MixtureSampler(CHOICES[:2], 4, seed=0).restore(state)
    with pytest.raises(InputError, match="data position"):
        MixtureSampler(CHOICES, 4, seed=0).restore({"epoch": 0, "position": 1})


@pytest.mark.parametrize("templates", ["random", "all"])
@pytest.mark.parametrize("one_task", [False, True])
def test_each_epoch_of_a_task_has_everything_once(templates, one_task):
    sampler = MixtureSampler(CHOICES, 4, seed=1, templates=templates, one_task=one_task)
    drawn = [sampler.drawn(k) for k in range(400)]
    tasks, rows = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    for t, (task, size) in enumerate(zip(CHOICES, sampler.sizes, strict=True)):
        assert size == (len(task) if templates == "all" else task.num_examples)
        of_task = rows[tasks == t]
        epochs = of_task[: len(of_task) // size * size].reshape(-1, size)
        assert len(epochs) > 10
        unit = epochs if templates == "all" else task.example[epochs]
        assert (np.sort(unit, axis=1) == np.arange(size)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > len(epochs) / 2
        share = np.bincount(task.template[of_task]) / len(of_task)
        assert abs(share - 1 / task.num_templates).max() < 0.1
    if one_task:
        assert all(len(set(batch.tolist())) == 1 for batch, _ in drawn)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [5, 12, 7]),
        ({"cap": 6}, [5, 6, 6]),
        ({"cap": 6, "caps": {"long": 2}}, [5, 6, 2]),
        ({"rates": "rows"}, [15, 12, 14]),
        ({"rates": "equal", "cap": 1}, [1, 1, 1]),
        ({"rates": [3, 0, 1]}, [3, 0, 1]),
        ({"temperature": 2.0}, np.sqrt([5, 12, 7])),
    ],
)
def test_tasks_are_drawn_by_their_rates(options, expected):
    sampler = MixtureSampler(CHOICES, 8, seed=0, **options)
    expected = np.asarray(expected) / np.sum(expected)
    np.testing.assert_allclose(sampler.rates, expected)
    tasks = np.concatenate([sampler.drawn(k)[0] for k in range(640)])
    counts = np.bincount(tasks, minlength=3)
    deviation = np.sqrt(len(tasks) * expected * (1 - expected))
    assert (abs(counts - len(tasks) * expected) <= 4 * deviation).all()


def test_draws_of_tasks_are_independent():
    """The counts of a stretch vary over seeds as a multinomial's, the tree notwithstanding."""
    rates = np.array([0.2, 0.8])
    counts = []
    for seed in range(150):
        sampler = MixtureSampler(CHOICES[:2], 64, seed=seed, rates=rates)
        counts.append([int((sampler.drawn(k)[0] == 0).sum()) for k in (0, 1, 47)])
    counts = np.array(counts)
    expected = 64 * 0.2 * 0.8
    assert abs(counts.mean(axis=0) - 64 * 0.2).max() < 4 * np.sqrt(expected / 150)
    assert (abs(counts.var(axis=0) / expected - 1) < 4 * np.sqrt(2 / 150)).all()
    assert abs(np.corrcoef(counts.T)[~np.eye(3, dtype=bool)]).max() < 4 / np.sqrt(150)


def test_draws_far_away_continue_those_before():
    """What a place's tree counts in front of it is what was drawn there, across blocks."""
    sampler = MixtureSampler(CHOICES, 8, seed=5)
    start = 2**28 - 1024
    tasks, ordinals = sampler._draws.between(start, start + 2048)
    for task in range(3):
        assert (np.diff(ordinals[tasks == task]) == 1).all()
    assert sampler.drawn(start // 8)[0].tolist() == tasks[:8].tolist()


def test_rates_are_those_of_seqio():
    import seqio

    class Sized:
        name, cache_dir = "sized", None

        def __init__(self, size):
            self.num_input_examples = lambda split: size

    sizes = [250, 9_000, 120_000]
    for cap, temperature in [(None, 1.0), (5_000, 1.0), (5_000, 2.0)]:
        theirs = [
            seqio.mixing_rate_num_examples(Sized(n), maximum=cap, temperature=temperature)
            for n in sizes
        ]
        ours = mixing_rates(sizes, cap=cap, temperature=temperature)
        np.testing.assert_allclose(ours, np.divide(theirs, sum(theirs)))


# --------------------------------------------------------------------------------------------
# What a batch holds
# --------------------------------------------------------------------------------------------
def own_arrays(task, row):
    """A row's arrays without padding."""
    mask = task.choice_mask[row]
    ids, answers = task.encoder_input_tokens[row], task.choices[row][mask]
    return ids[ids != 0].tolist(), [a[a != 0].tolist() for a in answers], int(task.label[row])


@pytest.mark.parametrize("options", [{}, {"buckets": 3}, {"one_task": True}])
def test_rows_for_ranking_survive(options):
    sampler = MixtureSampler(CHOICES, 4, seed=2, **options)
    shapes = set()
    for k in range(60):
        batch = sampler.batch(k)
        assert set(batch) == {
            "encoder_input_tokens", "choices", "choice_mask", "label", "row", "task_ids",
        }  # fmt: skip
        shapes.add((batch["encoder_input_tokens"].shape[1], *batch["choices"].shape[1:]))
        for i in range(4):
            mask, ids = batch["choice_mask"][i], batch["encoder_input_tokens"][i]
            answers = batch["choices"][i]
            assert not answers[~mask].any()
            found = ids[ids != 0].tolist(), [a[a != 0].tolist() for a in answers[mask]]
            task = CHOICES[batch["task_ids"][i]]
            assert (*found, int(batch["label"][i])) == own_arrays(task, batch["row"][i])
    if not options:
        assert shapes == {(24, 5, 6)}
    elif "one_task" in options:
        assert shapes == {(9, 2, 3), (4, 5, 2), (24, 3, 6)}
    else:
        assert len(shapes) > 1
        widths = [set(widths) for widths in zip(*shapes, strict=True)]
        assert widths[0] <= {6, 12, 24}
        assert widths[1] <= {2, 3, 5}
        assert widths[2] <= {2, 3, 6}


@pytest.mark.parametrize("buckets", [1, 3])
def test_texts_survive(buckets):
    sampler = MixtureSampler(TEXTS, 4, seed=2, buckets=buckets)
    for k in range(40):
        batch = sampler.batch(k)
        for i in range(4):
            task, row = TEXTS[batch["task_ids"][i]], batch["row"][i]
            ids = batch["encoder_input_tokens"][i]
            np.testing.assert_array_equal(ids[ids != 0], task.inputs[row])
            told = batch["decoder_target_tokens"][i][batch["decoder_loss_weights"][i] > 0]
            np.testing.assert_array_equal(told, task.targets[row])


def test_decoders_prompts_and_answers_fill_each_batch_to_one_length():
    tasks = [texts_task(n, 5, 1, longest, kind="decoder") for n, longest in (("a", 4), ("b", 12))]
    sampler = MixtureSampler(tasks, 3, seed=0)
    widths = [max(task.lengths[i] for task in tasks) for i in (0, 1)]
    assert {sampler.batch(k)["decoder_input_tokens"].shape for k in range(9)} == {(3, sum(widths))}


@pytest.mark.parametrize("tasks", ALL)
@pytest.mark.parametrize("options", [{}, {"one_task": True}, {"buckets": 2, "templates": "all"}])
def test_shards_are_disjoint_and_together_the_batch(tasks, options):
    whole = MixtureSampler(ALL[tasks], 6, seed=7, **options)
    places = ([0, 1], [2, 3], [4, 5])
    shards = [MixtureSampler(ALL[tasks], 6, seed=7, rows=rows, **options) for rows in places]
    for k in (0, 1, 170, 171, 10**6):  # 1024 rows are drawn at once: batch 170 lies on a border
        parts = [shard.batch(k) for shard in shards]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        assert_same(joined, whole.batch(k))


# --------------------------------------------------------------------------------------------
# Training on them
# --------------------------------------------------------------------------------------------
CONFIG = pj.Config("t5", 53, 16, 24, 2, 8, 1, 1, dropout=0.0, remat="none")


@pytest.mark.parametrize(
    ("tasks", "objective"),
    [("choices", objectives.tfew_objective()), ("texts", objectives.lm_objective())],
)
def test_the_loss_of_a_mixed_batch_is_the_sum_of_its_tasks(tasks, objective):
    """Padding to the widest task changes nothing, and no task sees another."""
    backbone = pj.init_backbone(CONFIG, jax.random.key(0))
    mixed = MixtureSampler(ALL[tasks][:2], 8, seed=0).batch(0)
    ids, rows = mixed.pop("task_ids"), mixed.pop("row")
    counts = objective.counts(CONFIG, mixed)
    value = jax.jit(lambda batch: objective.value(CONFIG, backbone.params, batch, None, counts))
    whole, parts = value(mixed), []
    for task in (0, 1):
        own = ALL[tasks][task].rows(rows[ids == task])
        own.pop("row")
        assert len(own["encoder_input_tokens"])
        parts.append(value(own))
    summed = jax.tree.map(lambda *values: sum(values), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), whole, summed)


@pytest.mark.slow
def test_each_task_trains_its_own_adapter_of_a_bank():
    backbone = pj.init_backbone(CONFIG, jax.random.key(0))
    method = pj.ia3()
    stored = [method.init(jax.random.key(t), backbone) for t in range(3)]
    batch = MixtureSampler(CHOICES, 4, seed=0, rates=[1, 0, 1]).batch(0)
    batch.pop("row")
    assert set(batch["task_ids"].tolist()) == {0, 2}
    objective = objectives.tfew_objective()

    @jax.jit
    @jax.grad
    def gradients(stored, batch):
        params = pj.merge(backbone.params, pj.bank([(method, tree) for tree in stored]))
        counts = objective.counts(CONFIG, batch)
        return objective.value(CONFIG, params, batch, None, counts)[0]

    found = gradients(stored, batch)
    moved = [any(bool((g != 0).any()) for g in jax.tree.leaves(tree)) for tree in found]
    assert moved == [True, False, True]


# --------------------------------------------------------------------------------------------
# What cannot be mixed
# --------------------------------------------------------------------------------------------
OTHER_WORDS = choices_task("other", 3, 1, 4, 2, 2, vocabulary="b" * 64)
TYPED = choices_task("typed", 3, 1, 4, 2, 2, encoder_token_types=np.zeros((3, 4), np.int32))


@pytest.mark.parametrize(
    ("tasks", "options", "words"),
    [
        ([], {}, "no tasks"),
        ([CHOICES[0], TEXTS[0]], {}, "one are ChoiceExamples, of the other TextExamples"),
        ([CHOICES[0], OTHER_WORDS], {}, "made with vocabulary"),
        ([CHOICES[0], TYPED], {}, "encoder_token_types"),
        ([TEXTS[0], texts_task("d", 3, 1, 4, kind="decoder")], {}, "made with kind"),
        (CHOICES, {"rates": [1, 2]}, "2 rates for a mixture of 3"),
        (CHOICES, {"rates": [0, 0, 0]}, "not all 0"),
        (CHOICES, {"rates": [1, -1, 1]}, "0 or more"),
        (CHOICES, {"rates": "sizes"}, "rates 'sizes'"),
        (CHOICES, {"temperature": 0}, "temperature 0"),
        (CHOICES, {"caps": {"none": 3}}, "a cap for 'none'"),
        (CHOICES, {"templates": "one"}, "templates 'one'"),
        (CHOICES, {"buckets": 0}, "buckets 0"),
        (CHOICES, {"rows": [0, 4]}, "of a batch of 4: 0 to 3"),
        (CHOICES, {"seed": -1}, "seed -1"),
        (CHOICES, {"batch_size": 0}, "batch size 0"),
    ],
)
def test_bad_input(tasks, options, words):
    with pytest.raises(InputError, match=words):
        MixtureSampler(tasks, **{"batch_size": 4, "seed": 0} | options)
