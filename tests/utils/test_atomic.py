"""A file is written whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from selkit.errors import InvalidInputError, InvalidTypeError
from selkit.utils.atomic import UNFINISHED, replacing, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def half(path, error):
    with replacing(path) as new:
        new.write_text("half of")
        raise error


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        half(path, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_text_is_written_as_it_is(tmp_path):
    write_text(tmp_path / "a", "x\r\ny\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\n"


def test_permissions_and_links_stay(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to("a.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_reader_keeps_what_it_opened(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with path.open("rb") as file:
        write_bytes(path, b"newer")
        assert file.read() == b"old"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_long_name_fits(tmp_path):
    path = tmp_path / ("é" * 120 + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x"


def test_devices_are_written_to(tmp_path):
    write_text("/dev/null", "x")
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="No such folder"):
        write_text(tmp_path / "no" / "a", "x")


@pytest.mark.parametrize("path", [None, 3, 1.5, b"a", ["a"]])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InvalidTypeError, match="path must be a path"):
        write_text(path, "x")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_impossible_paths_are_refused(path):
    with pytest.raises(InvalidInputError, match="null characters"):
        write_text(path, "x")


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    done = run(
        """
        import resource, signal, sys
        from selkit.utils.atomic import write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(sys.argv[1], b"n" * 2000)
        except OSError as error:
            print(type(error).__name__, error.errno)
        """,
        path,
    )
    assert done.communicate()[0].split()[0] == "OSError"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_the_old_file(tmp_path, how):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    process = run(
        """
        import sys, time
        from selkit.utils.atomic import replacing
        with replacing(sys.argv[1]) as new:
            new.write_text("half")
            print("ready", flush=True)
            time.sleep(60)
        """,
        path,
    )
    process.stdout.readline()
    write_text(tmp_path / "b.txt", "other")
    left = [name for name in names(tmp_path) if name.endswith(UNFINISHED)]
    assert len(left) == 1, "of a process that lives, and nothing else"
    write_text(path, "old")
    assert left[0] in names(tmp_path), "what a living process writes stays"
    os.kill(process.pid, how)
    process.communicate()
    assert path.read_text() == "old"
    write_text(path, "new")
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_words_of_a_library_about_the_disk(tmp_path):
    class ForeignError(Exception):
        pass

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match="No space left") as caught:
        half(tmp_path / "a", ForeignError(said))
    assert isinstance(caught.value.__cause__, ForeignError)
    assert not names(tmp_path)


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "a"
    code = """
        import sys
        from selkit.utils.atomic import write_bytes
        for _ in range(40):
            write_bytes(sys.argv[1], sys.argv[2].encode() * 5000)
        """
    processes = [run(code, path, letter) for letter in "xy"]
    seen, end = set(), time.monotonic() + 60
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if path.exists():
            seen.add(path.read_bytes())
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert seen <= {b"x" * 5000, b"y" * 5000}
    assert names(tmp_path) == ["a"]
