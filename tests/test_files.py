"""Outputs appear whole or not at all, and what cannot be written is said before any work."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densify.errors import UsageError
from densify.files import Writer, check_writable, companion, write_all, write_atomically


def _put(content: str, seen: list[Path] | None = None) -> Writer:
    def write(path: Path) -> None:
        path.write_text(content)
        if seen is not None:
            seen.append(path)

    return write


def _fail_with(error: BaseException) -> Writer:
    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    return write


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_beside_the_target_then_renames(tmp_path: Path) -> None:
    target = tmp_path / "dense.safetensors"
    seen: list[Path] = []
    write_atomically(target, _put("whole", seen))
    assert target.read_text() == "whole"
    assert (seen[0].name, seen[0].parent.parent) == (target.name, tmp_path)
    assert _names(tmp_path) == ["dense.safetensors"]


def test_target_does_not_exist_while_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "dense.pth"

    def write(path: Path) -> None:
        assert not target.exists()
        path.write_text("whole")

    write_atomically(target, write)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_nothing_and_changes_nothing(tmp_path: Path, error: BaseException, existing: bool) -> None:
    target = tmp_path / "dense.pth"
    if existing:
        target.write_text("before")
    before = _names(tmp_path)
    with pytest.raises(type(error)):
        write_atomically(target, _fail_with(error), overwrite=True)
    assert _names(tmp_path) == before
    assert not existing or target.read_text() == "before"


def test_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "dense.pth"
    target.write_text("before")
    seen: list[Path] = []
    with pytest.raises(UsageError, match=r"exists already.*--overwrite, in Python overwrite=True"):
        write_atomically(target, _put("after", seen))
    assert seen == []
    assert target.read_text() == "before"
    write_atomically(target, _put("after"), overwrite=True)
    assert target.read_text() == "after"


def test_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "dense.pth"

    def write(path: Path) -> None:
        path.write_text("ours")
        target.write_text("theirs")

    with pytest.raises(UsageError, match="exists already"):
        write_atomically(target, write)
    assert target.read_text() == "theirs"
    assert _names(tmp_path) == ["dense.pth"]


def test_several_outputs_are_all_or_none(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.onnx"
    with pytest.raises(RuntimeError, match="boom"):
        write_all({a: _put("whole"), b: _fail_with(RuntimeError("boom"))})
    assert _names(tmp_path) == []
    write_all({a: _put("one"), b: _put("two")})
    assert (a.read_text(), b.read_text()) == ("one", "two")


def test_failed_rename_takes_the_new_files_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a.pth", tmp_path / "b.pth"
    replace = Path.replace

    def fail_on_b(self: Path, target: Path) -> Path:
        if target.name == "b.pth":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_b)
    with pytest.raises(UsageError, match=r"b\.pth: cannot be written: No space left on device"):
        write_all({a: _put("one"), b: _put("two")})
    assert _names(tmp_path) == []


def _put_pair(graph: str, data: str) -> Writer:
    def write(path: Path) -> None:
        companion(path).write_text(data)
        path.write_text(graph)

    return write


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_companion_appears_beside_its_target(tmp_path: Path) -> None:
    write_atomically(tmp_path / "net.onnx", _put_pair("graph", "data"))
    assert _contents(tmp_path) == {"net.onnx": "graph", "net.onnx.data": "data"}
    write_atomically(tmp_path / "net.onnx", _put_pair("graph 2", "data 2"), overwrite=True)
    assert _contents(tmp_path) == {"net.onnx": "graph 2", "net.onnx.data": "data 2"}
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(UsageError, match=r"net\.onnx\.data: exists already.*--overwrite"):
        write_atomically(tmp_path / "net.onnx", _put_pair("graph 3", "data 3"))
    assert _contents(tmp_path) == {"net.onnx.data": "data 2"}


def test_no_final_name_is_taken_while_a_pair_is_written(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        _put_pair("graph", "data")(path)
        assert not [name for name in _names(tmp_path) if not name.startswith(".")]
        assert _names(path.parent) == ["net.onnx", "net.onnx.data"]  # so that the one finds the other by its name

    write_atomically(tmp_path / "net.onnx", write)


class _Interruption:
    """Ctrl-C before or after the n-th step that changes the file system; counts the steps."""

    STEPS = ((Path, "mkdir"), (Path, "touch"), (Path, "chmod"), (Path, "hardlink_to"), (Path, "replace"),
             (Path, "unlink"), (Path, "write_text"), (os, "fsync"), (shutil, "copymode"))  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, after: bool) -> None:
        self.count, self.at, self.after = 0, at, after
        for owner, name in self.STEPS:
            monkeypatch.setattr(owner, name, self._interrupted(getattr(owner, name)))

    def _interrupted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            mine = self.count == self.at
            if mine and not self.after:
                raise KeyboardInterrupt
            try:
                return step(*args, **kwargs)
            finally:
                if mine:
                    raise KeyboardInterrupt

        return run


@pytest.mark.parametrize("existing", ["nothing", "a pair", "a graph", "a pair that becomes one file"])
@pytest.mark.parametrize("links", [True, False])
def test_an_interruption_at_any_step_changes_nothing(tmp_path: Path, existing: str, links: bool) -> None:
    graph, other = tmp_path / "net.onnx", tmp_path / "net.pth"
    if existing != "nothing":
        graph.write_text("before, with its weights in net.onnx.data")
        other.write_text("before too")
    if "pair" in existing:
        companion(graph).write_text("its data")
    before, one = _contents(tmp_path), "one file" in existing
    writers = {graph: _put("graph") if one else _put_pair("graph", "data"), other: _put("weights")}
    for at, after in ((at, after) for at in itertools.count(1) for after in (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            if not links:
                patch.setattr(Path, "hardlink_to", _refused)
            step = _Interruption(patch, at, after)
            try:
                write_all(writers, overwrite=True)
            except KeyboardInterrupt:
                assert _contents(tmp_path) == before, (at, after)
                continue
        assert (step.count, after) == (at - 1, False)  # there were no more steps
        break
    assert at > 13
    data = {} if one else {"net.onnx.data": "data"}
    assert _contents(tmp_path) == {"net.onnx": "graph", "net.pth": "weights", **data}


def test_data_that_a_replaced_file_does_not_name_stays(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("a graph with its weights inside")
    (tmp_path / "net.onnx.data").write_text("of something else")
    write_atomically(tmp_path / "net.onnx", _put("graph"), overwrite=True)
    assert _contents(tmp_path) == {"net.onnx": "graph", "net.onnx.data": "of something else"}


def _refused(self: Path, target: Path) -> None:
    raise OSError(95, "Operation not supported")


def test_full_disk_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dense\.pth: cannot be written: No space left"):
        write_atomically(tmp_path / "dense.pth", _fail_with(OSError(28, "No space left on device")))
    assert _names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.pth", tmp_path / "link.pth"
    real.write_text("before")
    link.symlink_to(real)
    write_atomically(link, _put("after"), overwrite=True)
    assert link.is_symlink()
    assert real.read_text() == "after"


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain, target = tmp_path / "plain", tmp_path / "dense.pth"
    plain.touch()
    write_atomically(target, _put("whole"))
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    target.chmod(0o640)
    write_atomically(target, _put("again"), overwrite=True)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/dense.pth", "there is no folder"),
        ("a_file/dense.pth", "there is no folder"),
        ("a_folder.pth", "this is a folder"),
        ("there.pth", "exists already"),
        ("dense.h5", r"one of \.safetensors, \.pth, \.onnx"),
        ("dense", "the suffix decides"),
    ],
)
def test_check_writable_refuses(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "there.pth").touch()
    (tmp_path / "a_folder.pth").mkdir()
    before = _names(tmp_path)
    with pytest.raises(UsageError, match=message):
        check_writable([tmp_path / name])
    assert _names(tmp_path) == before


def test_check_writable_refuses_the_same_output_twice(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="twice"):
        check_writable([tmp_path / "dense.pth", tmp_path / "sub" / ".." / "dense.pth"])


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permission bits do not bind every user who runs this
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable([tmp_path / "dense.pth"])


def test_check_writable_accepts(tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    check_writable([tmp_path / "dense.SAFETENSORS", tmp_path / "dense.onnx"])
    check_writable([tmp_path / "there.pth"], overwrite=True)
