"""restkv-chat: talk with a GGUF model about texts far longer than its KV cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import click
from click.core import ParameterSource

from ..._version import __version__
from ...engine.documents import STDIN, EmptyDocument, comes, piped, read_document
from ...engine.settings import EngineSettings
from ...errors import ArchiveError, ConfigError, ContextOverflow
from ...models.makers import wishes
from ...plan.machine import size
from ...sampling import CHAT_ANSWER
from ..doctor.command import doctor
from ..failure import one_line
from ..options import CONTEXT_SETTINGS, Temperature, Utf8, engine_class, engine_options
from ..program import EXIT_STOPPED, Program
from . import keeping, shelf
from .command import Leave
from .commands import SUMMARIES, WITH_PATHS, ask_drawn, execute, is_command
from .figures import turn_object
from .overflow import way_out
from .sampling import NAMES, Sampling
from .session import Session
from .sessions import sessions
from .ui import UI, no_echo
from .worker import Mailbox

_EPILOG = (
    "Without --ask, a terminal starts a conversation (/help there), and anything else on standard input is the "
    "question. Try: restkv-chat --file book.txt --ask 'Who is the captain?'"
)
# Seconds until it is said that standard input is waited for.
_PATIENCE = 2.0


@click.group(
    cls=Program, context_settings=CONTEXT_SETTINGS, epilog=_EPILOG, invoke_without_command=True,
    subcommand_metavar="[doctor|sessions ...]",
)
@engine_options(shown={"archive": "a file where documents or a conversation can have one, else none"})
@click.option(
    "--temp", type=Temperature(), default=None,
    help="Temperature of sampling; 0: the likeliest. As the model's makers say when not given.",
)
@click.option(
    "--set", "settled", metavar="NAME=VALUE", multiple=True,
    help=f"How answers are drawn: {', '.join(NAMES)}. Repeatable.",
)
@click.option("--system", type=Utf8(), default=None, help='System prompt; "" is none.')
@click.option(
    "--max-tokens", type=click.IntRange(min=0), default=None, show_default=str(CHAT_ANSWER),
    help="Longest answer; 0: no limit.",
)
@click.option(
    "--chat-format", metavar="NAME", default=None,
    help="How a conversation is written, in place of the model's template: qa, as questions and answers, for base "
    "models; raw, as it is; or a format of llama-cpp-python.",
)
@click.option(
    "-f", "--file", "files", metavar="PATH", multiple=True,
    help="A text to put before the question; - for standard input. Repeatable.",
)
@click.option("-p", "--ask", type=Utf8(), default=None, help="Answer this and exit; what is piped in is a document.")
@click.option(
    "--session", "name", type=Utf8(), default=None, metavar="NAME",
    help="Go on with this session, or start it; it is saved at the end.",
)
@click.option("--continue", "again", is_flag=True, help="Go on with the session that was saved last.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the answer's text.")
@click.version_option(__version__)
@click.pass_context
def main(
    ctx: click.Context,
    /,
    settings: EngineSettings,
    temp: float | None,
    settled: tuple[str, ...],
    system: str | None,
    max_tokens: int | None,
    chat_format: str | None,
    files: tuple[str, ...],
    ask: str | None,
    name: str | None,
    again: bool,
    as_json: bool,
) -> None:
    """Talk with a GGUF model in a KV cache of fixed size.

    The answer goes to standard output; progress and figures go to standard error.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx)
        return
    interactive = ask is None and sys.stdin.isatty()
    if interactive and as_json:
        raise click.UsageError("--json needs a question: add --ask TEXT or pipe one in")
    if ask is None and STDIN in files:
        raise click.UsageError("--file - takes standard input, so the question needs --ask TEXT")
    if files.count(STDIN) > 1:
        raise click.UsageError("--file - can be given once: standard input ends")
    if ask is not None and not ask.strip():
        raise click.UsageError("--ask is empty; give a question")
    if name is not None and again:
        raise click.UsageError("--continue takes the newest session and --session names one: leave one of them out")
    name = shelf.newest() if again else name
    goes_on = name is not None and shelf.path_of(name).exists()
    sampling = _sampling(temp, settings.seed, max_tokens, settled)
    documents = [read_document(path) for path in files]
    notices = []
    ui = UI(quiet=as_json, typed=interactive)
    if ask is not None and STDIN not in files and piped():
        if not comes(_PATIENCE):
            ui.notice("waiting for a text on standard input; with < /dev/null the question goes without one")
        try:
            documents.append(read_document(STDIN))
        except EmptyDocument:
            notices.append("standard input holds no text: the question goes without it")
    ways = _ways(ctx, settings) if documents or interactive or name is not None else [{}]
    question = ask if ask is not None else "" if interactive else _piped_question()

    ctx.with_resource(no_echo())
    mailbox = Mailbox()
    with ui.waiting("loading the model"):
        engine = _load(settings, engine_class(ctx), mailbox, ways, chat_format)
    try:
        if chat_format is not None:
            from ...engine.answers.chat_templates import handler

            handler(engine)  # an unknown format is refused before anything is read
        for event in mailbox.rest():
            ui.draw(event)
        if settings.model is None:
            ui.notice(f"no --model given: the embedded model answers ({engine.report().model})")
        wanted = wishes(engine.metadata, engine.report().model)
        for notice in filter(None, [*notices, wanted.ignored]):
            ui.notice(notice)
        sampling = replace(sampling, makers=wanted.sampling)
        session = Session(
            engine, mailbox, sampling, wanted.system if system is None else system, documents
        )
        if name is not None and goes_on:
            keeping.take(session, ui, name)
            session.documents = [*session.documents, *documents]
            session.system = session.system if system is None else system
        session.name = name
        if interactive:
            try:
                _converse(session, ui)
            finally:
                if session.name is not None and (session.messages or session.documents):
                    keeping.keep(session, ui, session.name)
            return
        try:
            turn = ask_drawn(session, ui, question)
            if name is not None:
                keeping.keep(session, ui, name)
        except ContextOverflow as error:
            raise click.ClickException(way_out(error, session, typed=False)) from error
        if as_json:
            click.echo(json.dumps(turn_object(turn, ui.said), ensure_ascii=False))
        if turn.stopped:
            raise SystemExit(EXIT_STOPPED)
    finally:
        engine.close()


def _sampling(temp: float | None, seed: int | None, max_tokens: int | None, settled: tuple[str, ...]) -> Sampling:
    sampling = Sampling(temp, seed, max_tokens)
    for text in settled:
        name, _, value = text.partition("=")
        try:
            sampling = sampling.with_(name.strip(), value.strip())
        except ConfigError as error:
            raise click.UsageError(f"--set {text}: {error}") from error
    return sampling


def _refuse_options(ctx: click.Context) -> None:
    """A sub-command takes its own options: one before its name would do nothing."""
    for parameter in ctx.command.params:
        if parameter.name and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[-1]} does not belong to {ctx.invoked_subcommand}; leave it out")


main.add_command(doctor)
main.add_command(sessions)


def _ways(ctx: click.Context, settings: EngineSettings) -> list[dict[str, str]]:
    """How documents and conversations are read where no option says it, as changes of the settings, best first: with an
    archive, so that any question finds what it asks for; guided by the question; as it comes."""
    if settings.prefill is not None:
        return [{}]
    guided = [{"prefill": "guided"}, {}]
    if ctx.get_parameter_source("archive") is not ParameterSource.DEFAULT:
        return guided if settings.archive == "none" else [{}]
    if settings.method == "full":  # nothing is evicted
        return guided
    # where the cells lie in the memory of a card, that of the host is free for the rest
    places = ["ram", "file"] if settings.gpu_layers else ["file"]
    return [{"archive": place} for place in places] + guided


def _load(
    settings: EngineSettings,
    engine: Callable[..., Any],
    mailbox: Mailbox,
    ways: Sequence[dict[str, str]],
    chat_format: str | None,
) -> Any:
    """The engine, read in the first way that model, settings and machine allow; what was not possible is said."""
    refused: dict[str, Exception] = {}
    for way in ways:
        more: dict[str, Any] = {"on_progress": mailbox.progress, "on_notice": mailbox.notice}
        if chat_format is not None:
            more["chat_format"] = chat_format
        try:
            made = settings.load(engine, evict=settings.evict(**way), n_ctx=settings.context, **more)
        except (ConfigError, ArchiveError) as error:
            # What is wrong may be another setting; then the last way fails too, and tells.
            if way is ways[-1]:
                raise
            for name in way:
                refused.setdefault(name, error)
            continue
        if "archive" in refused and "archive" not in way:
            mailbox.notice(f"evicted rows are not kept, and a later question may miss them: {refused['archive']}")
        if "prefill" in refused:
            mailbox.notice(
                f"long texts are read without the question as guide, which loses details: {refused['prefill']}"
            )
        return made
    raise AssertionError("there is always a way")


def _piped_question() -> str:
    return read_document(STDIN).text.strip()


def _converse(session: Session, ui: UI) -> None:
    from .prompt import Prompt

    report = session.engine.report()
    ui.notice(
        f"{report.model}: context {report.context:,} positions, {report.capacity:,} cells (budget {report.budget:,})"
    )
    if report.archive is not None:
        place = "in memory" if report.archive.path is None else f"in {report.archive.path} until you leave"
        ui.notice(f"evicted rows are kept {place}, at most {size(report.archive.bytes)}: later questions find them")
    ui.notice("ask a question, or put a text before it with /file PATH; /help lists commands, Ctrl-D leaves")
    prompt = Prompt(SUMMARIES, WITH_PATHS, ui.notice)
    while True:
        try:
            line = prompt.read(session.draft)
        except KeyboardInterrupt:
            if not prompt.had_text:
                ui.notice("Ctrl-D leaves")
            continue
        except EOFError:
            return
        session.draft = ""
        if not line.strip():
            continue
        try:
            with one_line():
                if is_command(line):
                    execute(line, session, ui)
                else:
                    ask_drawn(session, ui, line.strip())
                    keeping.keep_if_cheap(session, ui)
        except Leave:
            return
        except ContextOverflow as error:
            ui.error(way_out(error, session, typed=True))
        except click.ClickException as error:
            ui.error(error.format_message())
        except KeyboardInterrupt:
            # Between two steps of a turn; inside one it is handled where the engine runs.
            ui.notice("stopped")


if __name__ == "__main__":
    main()
