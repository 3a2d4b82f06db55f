"""Summarisation: texts, other copies' field names, and the BBC's topics."""

import json

import pytest

from peft_jax.decoding import Decoding
from peft_jax.errors import InputError
from peft_jax.tasks import summarization
from peft_jax.tasks.prompted import find_task

TASKS = {task.name: task for task in summarization.TASKS}


@pytest.mark.parametrize(
    ("url", "topic"),
    [
        ("http://www.bbc.co.uk/news/world-europe-37197123", "world"),
        ("http://www.bbc.co.uk/news/world-36001234", "world"),
        ("http://www.bbc.co.uk/news/uk-england-norfolk-37000001", "uk"),
        ("http://www.bbc.co.uk/news/uk-12345678", "uk"),
        ("https://www.bbc.com/news/uk-scotland-glasgow-west-1", "uk"),
        ("http://www.bbc.co.uk/news/business-32000000", "business"),
        ("http://www.bbc.co.uk/news/health-32000000", "health"),
        ("http://www.bbc.co.uk/news/science-environment-32000000", "science-environment"),
        ("http://www.bbc.co.uk/sport/football/37000000", "sport"),
        ("http://www.bbc.co.uk/sport/0/rugby-union/37000000", "sport"),
        (
            "http://web.archive.org/web/20170101/http://www.bbc.co.uk/news/technology-1",
            "technology",
        ),
    ],
)
def test_a_topic_stands_in_the_address(url, topic):
    assert summarization.topic_of(url) == topic


@pytest.mark.parametrize("url", ["http://example.org/news/world-1", "bbc", ""])
def test_other_addresses_are_refused(url):
    with pytest.raises(InputError, match="is no address of a BBC article"):
        summarization.topic_of(url)


def test_splits_by_topic():
    topics = ["sport", "world", "uk", "business", "health", "technology"]
    rows = [{"topic": topic} for topic in topics]
    train, evaluated = summarization.split_by_topic(rows, "news_to_sports")
    assert [row["topic"] for row in train] == topics[1:]
    assert [row["topic"] for row in evaluated] == ["sport"]
    train, evaluated = summarization.split_by_topic(rows, "within_news")
    assert {row["topic"] for row in train} == summarization.WITHIN_NEWS_TRAINING
    assert [row["topic"] for row in evaluated] == ["health", "technology"]
    by_url = [{"url": "http://www.bbc.co.uk/sport/tennis/1"}]
    assert summarization.split_by_topic(by_url, "news_to_sports") == ([], by_url)
    with pytest.raises(InputError, match="'news_to_sports' or 'within_news'"):
        summarization.split_by_topic(rows, "topics")
    with pytest.raises(InputError, match="row 0 has neither topic nor url; it has text"):
        summarization.split_by_topic([{"text": ""}], "within_news")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("xsum", {"document": "D. ", "summary": "S.", "id": "1"}),
        ("cnn_dm", {"article": "D.", "highlights": "S.", "id": "1"}),
        ("samsum", {"dialogue": "D.", "summary": "S.", "id": "1"}),
        ("xsum_within_news", {"document": "D.", "summary": "S."}),
    ],
)
def test_every_copy_gives_document_and_summary(name, row, tmp_path):
    folder = tmp_path / TASKS[name].dataset.folder
    folder.mkdir()
    empty = {key: "" if value == "D. " else value for key, value in row.items()}
    lines = [row, empty] if name == "xsum" else [row]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    (made,) = find_task(name, directory=tmp_path).prompted("train")
    assert (made.input, made.target, made.references) == ("D.", "S.", ("S.",))
    if f"{name}_seq2seq" in TASKS:
        (made,) = find_task(f"{name}_seq2seq", directory=tmp_path).prompted("train")
        assert (made.input, made.target) == ("summarize: D.", "S.")


def test_decoding_is_that_of_prefix_tuning():
    for task in summarization.TASKS:
        Decoding(**task.decoding)
    xsum = TASKS["xsum"]
    assert (xsum.decoding["beams"], xsum.decoding["length_penalty"]) == (6, 0.8)
    assert (xsum.max_input_length, xsum.max_target_length) == (512, 60)
