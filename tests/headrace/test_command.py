"""The command's help reads well, and impossible requests are one line and a status."""

import importlib
import io
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.command import COMMANDS, run
from headrace.dataset import DatasetError, open_dataset
from tests.brokers import wait_until

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    ("stream", "worker"): "worker",
    ("stream", "produce"): "produce",
    ("stream", "simulate"): "simulate",
    ("trainer",): "train",
    ("serving",): "serve",
}


class Done(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in this process, in an empty folder, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str, main: Callable[[list[str]], int] | None = None) -> Done:
        capsys.readouterr()
        status = main(list(arguments)) if main else run("headrace", arguments=list(arguments))
        return Done(status, *capsys.readouterr())

    return call


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """``headrace`` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "headrace", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "80", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    with process:
        out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def test_help_names_every_command(command_line: Command) -> None:
    done = command_line("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n│ {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_eighty_columns(command: str, command_line: Command) -> None:
    done = command_line(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: headrace {command} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout, "a column was too narrow for its text"


@pytest.mark.parametrize("room", ROOMS, ids=" ".join)
def test_a_rooms_own_front_door_has_the_same_options(room: tuple[str, ...], command_line: Command) -> None:
    main = importlib.import_module(f"{room[0]}.__main__").main
    ours, theirs = command_line(*room[1:], "--help", main=main), command_line(ROOMS[room], "--help")
    assert (ours.returncode, theirs.returncode) == (0, 0)
    assert f"Usage: python -m {' '.join(room)} " in ours.stdout
    assert ours.stdout.splitlines()[2:] == theirs.stdout.splitlines()[2:]


def test_a_locale_without_the_characters_that_are_printed_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    assert run("headrace", arguments=["lag", "--help"]) == 0
    print("Amélie – ★")
    assert raw.getvalue().endswith(b"Am\\xe9lie \\u2013 \\u2605\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_from_the_start_gives_its_number_to_no_file(closed: str, tmp_path: Path) -> None:
    """A library that writes to stderr would otherwise write into a database."""
    program = (
        "import os, sys, headrace.command as command; from headrace.sentences import say; "
        "command.run('headrace', arguments=['--version']); say('one'); say('two', is_error=True); sys.stdout.isatty(); "
        "os.write(os.open('first', os.O_WRONLY | os.O_CREAT), str(os.open('second', os.O_CREAT)).encode())"
    )
    command = f'"{sys.executable}" -c "{program}" {closed}'
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert int((tmp_path / "first").read_text()) > 2


def test_a_child_of_a_command_that_was_started_without_streams_has_the_null_device(tmp_path: Path) -> None:
    program = (
        "import subprocess, headrace.command as command; command.run('headrace', arguments=['--version']); "
        "raise SystemExit(subprocess.call(['sh', '-c', 'test -e /proc/self/fd/1 && test -e /proc/self/fd/2']))"
    )
    command = f'"{sys.executable}" -c "{program}" >&- 2>&-'
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("doctor --config nothing.toml 2>/dev/full", 2),
        ("doctor --config nothing.toml 2> >(true)", 2),
        ("trian 2>/dev/full", 2),
        ("topics --help > >(true)", 0),
        ("--version > >(true)", 0),
        ("--version >/dev/full", 1),
    ],
)
def test_the_status_says_what_happened_even_if_nobody_reads_it(line: str, status: int, tmp_path: Path) -> None:
    """A reader of stdout that goes has seen enough (`| head`); a disk that is full is an error."""
    command = f'"{sys.executable}" -m headrace {line}'
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == status


def test_help_loads_neither_torch_nor_kafka(tmp_path: Path) -> None:
    program = (
        "import sys, headrace.command as command; command.run('headrace', arguments=['train', '--help']); "
        "print(sorted({'torch', 'numpy', 'kafka', 'faust', 'starlette'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--json"], "goes with --file"),
        (["train", "--replay", "--file", "x"], "leave --file out"),
        (["train", "--file", "x", "--take-over"], "leave --file out"),
        (["train", "--checkpoint-dir", ""], "trainer.checkpoint_dir: expected a string that is not empty"),
        (["dead-letters", "--from", "3"], "goes with --resend"),
        (["dead-letters", "--resend", "--reason", "future"], "leave it out with --resend"),
        (["broker", "70000"], "65535"),
        (["audit", "--bootstrap", ""], "kafka.bootstrap: expected host:port"),
        (["trian"], "No such command"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str, command_line: Command) -> None:
    done = command_line(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_file_that_the_configuration_names_has_the_status_of_a_wrong_configuration(
    command_line: Command, tmp_path: Path
) -> None:
    (tmp_path / "tokens.toml").write_text('raed = ["a-token-that-reads"]')
    (tmp_path / "headrace.toml").write_text(f'[serving]\ntokens_file = "{tmp_path / "tokens.toml"}"\n')
    done = command_line("serve", "--config", str(tmp_path / "headrace.toml"))
    assert "serving.tokens_file: expected lists read and admin, got raed" in done.stderr
    assert done.returncode == 2, "so that systemd does not start it again and again"


def heeds_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, which Python itself has not."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, 1.0])
def test_a_command_that_is_interrupted_ends_without_a_traceback(
    number: signal.Signals, status: int, after_s: float, tmp_path: Path
) -> None:
    """Also while it imports, and while it waits for a broker."""
    running = start("produce", "actions.jsonl", "--bootstrap", "127.0.0.1:1", folder=tmp_path)
    (tmp_path / "actions.jsonl").write_text('{"user": 1, "item": 2, "action": "click", "timestamp": 1764280000000}\n')
    wait_until(lambda: heeds_sigterm(running.pid), 60, "its first moment", every_s=0.001)
    time.sleep(after_s)
    running.send_signal(number)
    done = finish(running)
    assert "Traceback" not in done.stderr
    assert done.returncode == status


def test_an_interrupt_in_a_text_that_is_evaluated_does_not_change_the_status(tmp_path: Path) -> None:
    """Python itself would then end by SIGINT: 2 of 100 commands did that were told to end after a tenth of a second."""
    program = (
        "from headrace.interrupts import *; heed_interrupts()\n"
        "try: exec('import os, time; os.kill(os.getpid(), 15); time.sleep(60)')\n"
        "except KeyboardInterrupt: raise SystemExit(status_of_interrupt())"
    )
    (tmp_path / "told_to_end.py").write_text(program)
    command = [sys.executable, "-m", "told_to_end"]
    assert subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False).returncode == 143


def test_what_a_process_has_begun_is_cleared_up_also_if_it_is_interrupted_while_it_imports(tmp_path: Path) -> None:
    program = (
        "import time; from headrace.interrupts import *; heed_interrupts(); clear_up_from_here()\n"
        "try: import interrupted; time.sleep(60)\n"
        "except KeyboardInterrupt: raise SystemExit(status_of_interrupt() if was_interrupted() else 1)\n"
        "finally: print('cleared up')"
    )
    (tmp_path / "interrupted.py").write_text("import os, time; os.kill(os.getpid(), 15); time.sleep(0.1); print('all')")
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "all\ncleared up\n", "")


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    commands = ("topics", "versions", "audit", "lag", "dead-letters")
    running = {name: start(name, "--bootstrap", "127.0.0.1:1", folder=tmp_path) for name in commands}
    for name, process in running.items():
        done = finish(process)
        assert done.returncode == 1, name
        waiting, told = done.stderr.splitlines()
        assert waiting == "nothing accepts connections at 127.0.0.1:1: waiting up to 5 s for a Kafka broker"
        assert "no Kafka broker answers at 127.0.0.1:1" in told
        assert "--bootstrap HOST:PORT" in told


def test_a_dataset_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = finish(start("demo", "--dataset", "nothing.dat", folder=tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "headrace demo: --dataset: expected a file, got nothing.dat; "
        "formats: ratings.dat, ratings.csv, u.data, .inter, .jsonl, .parquet"
    )


def test_titles_come_from_the_file_beside_the_ratings(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n")
    (tmp_path / "movies.dat").write_text("10::GoldenEye (1995)::Action\n", encoding="latin-1")
    dataset = open_dataset(tmp_path / "ratings.dat")
    assert dataset.title(10) == "GoldenEye (1995)"
    assert dataset.title("11") == "11"


TITLES = {"10": 'Zoë, the "best"', "11": "Plain"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movies.csv", 'movieId,title\n10,"Zoë, the ""best"""\n11,Plain\n'.encode()),
        ("movies.csv", '\ufeffmovieId,title\r\n10,"Zoë, the ""best"""\r\n11,Plain\r\n'.encode()),
        ("movies.csv", 'genres;title;movieId\nx;"Zoë, the ""best""";10\ny;Plain;11\n'.encode("latin-1")),
        ("movies.csv", '10,"Zoë, the ""best""",x\n11,Plain,y\n'.encode("utf-16")),
        ("movies.dat", 'movieId::title::genres\n10::Zoë, the "best"::x\n11::Plain::y\n'.encode("latin-1")),
        ("movies.dat", '10::Zoë, the "best"::x\n11::Plain::y\n'.encode()),
        ("u.item", '10|Zoë, the "best"|1995\n11|Plain|1996\n'.encode("latin-1")),
        ("ratings.item", 'item_id:token\tmovie_title:token_seq\n10\tZoë, the "best"\n11\tPlain\n'.encode()),
    ],
)
def test_titles_are_read_however_they_are_written(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n")
    (tmp_path / name).write_bytes(content)
    assert {
        key: title for key, title in open_dataset(tmp_path / "ratings.dat").titles.items() if key in TITLES
    } == TITLES


@pytest.mark.parametrize("content", [b"", b"movieId,title\n", b'movieId,title\n1,"never closed\n', b"\0\1\2"])
def test_titles_that_cannot_be_read_do_not_stop_anything(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n")
    (tmp_path / "movies.csv").write_bytes(content)
    assert open_dataset(tmp_path / "ratings.dat").titles == {}


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DatasetError, match=r"cannot fetch MovieLens-100K .* --dataset PATH"):
        open_dataset(None)
    assert list((tmp_path / "headrace").iterdir()) == [], "nothing half-written"


def test_a_dash_is_told_the_name_of_standard_input(command_line: Command) -> None:
    assert "name standard input /dev/stdin" in command_line("produce", "-").stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"user,item,rating,timestamp\nu,i,4,inf\n", "actions.txt:2: timestamp: expected a time, got inf"),
        (b'{"user":["u"],"item":1,"action":"click","timestamp":1700000000000}\n', "actions.txt:1: user: expected"),
        (b"\x1f\x8b damaged", "actions.txt: expected gzip data, got a damaged file"),
        (b"user,item,rating,timestamp\n", "actions.txt: expected actions, got none"),
    ],
)
def test_a_file_that_cannot_be_sent_is_one_line(content: bytes, said: str, command_line: Command) -> None:
    Path("actions.txt").write_bytes(content)
    done = command_line("produce", "actions.txt", "--bootstrap", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"headrace produce: {said}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_version_is_that_of_the_package(command_line: Command) -> None:
    from importlib.metadata import version

    done = command_line("--version")
    assert (done.returncode, done.stdout) == (0, f"headrace {version('headrace')}\n")
    assert done.stdout.split()[1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
