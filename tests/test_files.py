"""Replacing a file or a folder: there whole, or as it was."""

import os

import pytest

from peft_jax.errors import InputError
from peft_jax.files import check_free, replace_file, replace_folder


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def fail_after_writing(path):
    path.write_text("half")
    raise TypeError("the rest cannot be written")


def test_a_file_is_there_when_the_block_is_left(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replace_file(path) as new:
        new.write_text("one")
        assert not path.exists()
    with replace_file(path) as new:
        new.write_text("two")
        assert path.read_text() == "one"
    assert content(tmp_path) == {"new/a.txt": "two"}


def test_a_file_is_as_it_was_where_the_block_raises(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(TypeError), replace_file(tmp_path / "a.txt") as new:
        fail_after_writing(new)
    assert content(tmp_path) == {"a.txt": "old"}


def test_two_files_of_one_stem_do_not_share_their_new_content(tmp_path):
    with replace_file(tmp_path / "a.txt") as one, replace_file(tmp_path / "a.json") as two:
        one.write_text("1")
        two.write_text("2")
    assert content(tmp_path) == {"a.txt": "1", "a.json": "2"}


@pytest.mark.parametrize("before", ["nothing", "empty", "full"])
def test_a_folder_is_there_when_the_block_is_left(tmp_path, before):
    folder = tmp_path / "deep" / "out"
    if before != "nothing":
        folder.mkdir(parents=True)
    if before == "full":
        (folder / "old.txt").write_text("old")
    with replace_folder(folder, overwrite=before == "full") as new:
        (new / "sub").mkdir()
        (new / "sub" / "a.txt").write_text("a")
    assert content(tmp_path) == {"deep/out/sub/a.txt": "a"}
    assert os.listdir(folder.parent) == ["out"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_folder_is_as_it_was_where_the_block_raises(tmp_path, before):
    folder = tmp_path / "out"
    if before:
        folder.mkdir()
        (folder / "a.txt").write_text(before)
    with pytest.raises(TypeError), replace_folder(folder, overwrite=True) as new:
        fail_after_writing(new / "a.txt")
    assert content(tmp_path) == ({"out/a.txt": "old"} if before else {})
    assert os.listdir(tmp_path) == (["out"] if before else [])


def test_a_folder_comes_back_where_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    move = os.replace

    def full_disk(source, target):
        if str(source).endswith("partial"):
            raise OSError("no space left")
        move(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"), replace_folder(folder, overwrite=True) as new:
        (new / "a.txt").write_text("new")
    assert content(tmp_path) == {"out/a.txt": "old"}


def test_content_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(InputError, match="not empty"), replace_folder(tmp_path):
        pass
    with pytest.raises(InputError, match="is a file"):
        check_free(tmp_path / "a.txt", overwrite=True)
    check_free(tmp_path, overwrite=True)
    assert content(tmp_path) == {"a.txt": "old"}
