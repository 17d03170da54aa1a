"""The command line: ``headrace`` with all of `headrace.commands`, and ``python -m ROOM`` with some of them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

import typer

from headrace.commands.migration import repartition
from headrace.commands.observation import audit, dead_letters, doctor, lag, top, topics, versions
from headrace.commands.options import all_commands
from headrace.commands.processes import broker, demo, replay, serve, train, worker
from headrace.commands.production import backfill, produce, simulate
from headrace.commands.removal import forget
from headrace.commands.rollout import pin, rollback, switch, unpin
from headrace.interrupts import INTERRUPTED, heed_interrupts, status_of_interrupt, was_interrupted
from headrace.sentences import say
from headrace.standard_streams import flush_output, prepare_streams
from headrace.system_limits import raise_file_limit, system_error, too_few_threads, too_small_stack

_LISTED = (
    demo, worker, train, serve, produce, backfill, simulate, lag, top, versions, pin, unpin, rollback, switch, replay,
    forget, repartition, topics, dead_letters, audit, doctor, broker,
)  # fmt: skip
WRONG_CONFIGURATION = 2
"""The exit status that says that starting again is of no use."""
MANY_THREADS = ("demo", "worker", "train", "serve", "replay")
"""The commands whose libraries start threads; all others say what is wrong on a machine that has too few."""
COMMANDS: dict[str, Callable[..., None]] = {each.__name__.replace("_", "-"): each for each in _LISTED}
"""The commands by name, in the order in which help lists them."""


def run(prog: str, names: Sequence[str] = tuple(COMMANDS), arguments: Sequence[str] | None = None) -> int:
    """Parse ``arguments`` (None: the process's own) and run the command among ``names``; returns the exit status.

    With a single name, that command is the program itself. An error that a person can resolve is one line on stderr and
    status 1, not a traceback.
    """
    if arguments is None:
        heed_interrupts()
    app = typer.Typer(
        help="Live user actions in, fresh recommendations out, by way of Kafka.\n\nTry it with nothing else "
        "installed: headrace demo. In production a worker, a trainer (train) and a server (serve) run side by side.",
        no_args_is_help=len(names) > 1,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # so that the lines of a docstring are joined
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    if len(names) > 1:
        app.callback()(all_commands)
    for name in names:
        app.command(name)(COMMANDS[name])
    reader = prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = names[0] if len(names) == 1 else words[0] if words and words[0] in names else ""
    too_little = raise_file_limit() or too_small_stack()
    if command in MANY_THREADS and not {"-h", "--help"}.intersection(words):
        too_little = too_little or too_few_threads()
    if too_little:
        say(f"headrace {command}: {too_little}", is_error=True)
        return 1
    try:
        app(args=words, prog_name=prog)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if status == INTERRUPTED:
            return status_of_interrupt()
        if isinstance(ended.__context__, BrokenPipeError):  # of which rich and Typer make status 1, in silence
            return 0 if reader.poll(0) else _explain(command, ended.__context__)
        failed = flush_output()
        return _explain(command, failed) if failed and not status and not reader.poll(0) else status
    except KeyboardInterrupt:
        return status_of_interrupt()
    except Exception as error:  # noqa: BLE001 (one that nobody can resolve is raised again)
        terminal_is_closed = isinstance(error, OSError) and error.errno == errno.EIO and was_interrupted()
        return status_of_interrupt() if terminal_is_closed else _explain(command, error)
    return 0


def _explain(command: str, error: Exception) -> int:
    """Say what is wrong, on one line; returns the exit status. Raises an error that no person can resolve."""
    told = (_refused(error) or error) if _is_user_facing(error) else system_error(error)
    if not told:
        raise error
    quotes_log = _is(error, ("headrace.processes", "ChildError"), ("headrace.processes", "DeadlineError"))
    say(f"headrace {command}: {told}", is_error=True, has_lines=quotes_log)
    return WRONG_CONFIGURATION if _is(error, ("wire.errors", "ConfigError")) else 1


def _refused(error: Exception) -> Exception | None:
    """The error to show for a Kafka error whose cause a person can fix; None for any other."""
    from wire.errors import HeadraceError
    from wire.kafka.refusal import refusal

    return None if isinstance(error, HeadraceError) else refusal(error, "kafka.bootstrap")


def _is_user_facing(error: Exception) -> bool:
    """Whether the message says what to do. (By then, the modules that define such errors are loaded.)"""
    return _is(error, ("wire.errors", "HeadraceError"), ("kafka.errors", "KafkaError"))


def _is(error: Exception, *kinds: tuple[str, str]) -> bool:
    """Whether an error is of one of these kinds (a module and a class): if it is, the module is loaded."""
    return any(isinstance(error, getattr(sys.modules.get(module), name, ())) for module, name in kinds)
