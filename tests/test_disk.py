"""Files are there whole or not at all, and nothing but files is replaced."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import allheads as ah
from allheads.disk import (
    checked_path,
    claimed,
    digest,
    named_path,
    replaced_folder,
    write_tensors,
    write_whole,
    written,
)


def test_a_file_is_replaced_with_the_usual_permissions(tmp_path):
    target, usual = tmp_path / "report", tmp_path / "usual"
    usual.touch()
    write_whole(target, "old")
    write_tensors(target, {"x": torch.arange(3)}, {"made": "here"})
    assert load_file(target)["x"].tolist() == [0, 1, 2]
    assert target.stat().st_mode == usual.stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"report", "usual"}


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "report"
    write_whole(target, "old")
    with pytest.raises(KeyboardInterrupt), written(target) as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ah.AllHeadsError, match="no space"), written(target):
        raise OSError("no space")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    for content in ("made", "replaced"):
        write_whole(link, content)
        assert link.is_symlink()
        assert file.read_text() == content


def test_devices_and_pipes_are_refused_and_stay(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link, "/dev/null"):
        for write in (checked_path, lambda path: write_whole(path, "x"), lambda path: write_tensors(path, {}, {})):
            with pytest.raises(ah.AllHeadsError, match="device, pipe or socket"):
                write(target)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_folders_and_paths_in_none_are_refused(tmp_path):
    with pytest.raises(ah.AllHeadsError, match="a file to write to, got the folder"):
        write_whole(tmp_path, "x")
    with pytest.raises(ah.AllHeadsError, match="a folder that exists"):
        write_whole(tmp_path / "no" / "where", "x")


def test_digests_of_text_bytes_and_files_agree(tmp_path):
    write_whole(tmp_path / "text", "heads")
    assert digest("heads") == digest(b"heads") == digest(tmp_path / "text")


def test_a_folder_takes_the_place_of_an_old_one_or_leaves_it(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with replaced_folder(target) as scratch:
            (scratch / "file").write_text(content)
        assert (target / "file").read_text() == content
    with replaced_folder(target, stays=Path.is_dir) as scratch:
        (scratch / "file").write_text("dropped")
    with pytest.raises(KeyboardInterrupt), replaced_folder(target) as scratch:
        (scratch / "file").write_text("half")
        raise KeyboardInterrupt
    rename = Path.replace

    def refuse(path, to):
        if to == target and path.suffix == ".part":
            raise OSError("refused")
        return rename(path, to)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="refused"), replaced_folder(target) as scratch:
        (scratch / "file").write_text("never")
    assert (target / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_killed_processes_go(tmp_path):
    """Killed while it wrote: what it left goes with the next writing; what a living process writes stays."""
    code = "import os, sys; from allheads.disk import written\nwith written(sys.argv[1]):\n    os._exit(9)"
    target = tmp_path / "kept [1].json"
    assert subprocess.run([sys.executable, "-c", code, str(target)]).returncode == 9
    (left,) = tmp_path.iterdir()
    living = left.with_name(left.name.replace(left.name.split(".")[-2], str(os.getppid())))
    living.touch()
    write_whole(target, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, target.name])


def test_a_leftover_of_an_earlier_process_with_the_same_number_goes(tmp_path):
    """In a container every process may have the number 1."""
    with written(tmp_path / "file") as beside:
        mine = beside.name
    earlier = tmp_path / re.sub("allheads-[0-9a-f]+", "allheads-0f", mine)
    earlier.touch()
    write_whole(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_longest_names_can_be_written_and_longer_ones_are_refused(tmp_path):
    target = tmp_path / ("x" * 250 + ".html")
    write_whole(target, "whole")
    assert target.read_text() == "whole"
    with pytest.raises(ah.AllHeadsError, match="File name too long"):
        write_whole(tmp_path / ("x" * 251 + ".html"), "whole")
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["", "a" * 300, "~nosuch/m", "nul\0", "half \ud800", None, 3, b"bytes"])
def test_names_that_no_file_can_have(name):
    for reader in (named_path, checked_path, lambda path: write_whole(path, "x"), ah.corpus.Sweep.load, ah.load):
        with pytest.raises(ah.AllHeadsError) as error:
            reader(name)
        assert len(str(error.value).encode()) < 200


def test_two_writers_of_one_file(tmp_path):
    """Second ones are refused, in this process or another; whoever is killed leaves no claim."""
    target = tmp_path / "sweep"
    code = "import os, sys\nfrom pathlib import Path\nfrom allheads.disk import claimed\n"
    code += "with claimed(Path(sys.argv[1])):\n    os._exit(9)"
    killed = [sys.executable, "-c", code, str(target)]
    assert subprocess.run(killed).returncode == 9
    with claimed(target), claimed(tmp_path / "another"):
        with pytest.raises(ah.AllHeadsError, match="nobody else is writing"), claimed(target):
            pass
        second = subprocess.run(killed, capture_output=True, text=True)
        assert "nobody else is writing" in second.stderr
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), claimed(target):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
