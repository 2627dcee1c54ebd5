"""The page of a blind listening test, with Gradio (extra ``app``).

All logic is in ``zoo.listening.trials``. Sounds reach the browser as unnamed samples, never as
files of the two folders, and no folder is served, so nothing on the page reveals which side is
which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError, describe
from zoo.listening.serving import address, cannot_serve, check_port, is_this_machine
from zoo.listening.trials import BlindTest, View, give_answer, heard, next_view, playable

QUESTION = "Which sound fits the text better?"
# Gradio checks its cached sounds every hour and deletes those older than a day
_CACHE_S = (3600, 86_400)
CHOICES = {"A fits better": "A", "No difference": "none", "B fits better": "B"}
WELCOME = (
    "Listen to both sounds as often as you like, with headphones if you can. Your answers are saved"
    " at once; use the same name to continue another time."
)
DONE = "You have answered all questions. Thank you! You may close this page."


def gradio() -> Any:
    """Imports Gradio. Raises ``UserError``, which says how to install it."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(
            'the listening page needs Gradio; install it with: pip install -e ".[app]"'
        ) from error
    return gradio


def shown(test: BlindTest, view: View) -> tuple[str, str, Any, Any]:
    """(progress, text, sound A, sound B) of a view: everything that is sent to the browser.

    Sounds are (rate in Hz, int16 (N, C)); text and sounds are empty after the last trial. Raises as
    ``read_audio``.
    """
    if view.trial is None:
        return DONE, "", None, None
    sounds = (playable(wave) for wave in heard(test, view.trial))
    a, b = ((rate_hz, samples_NC.numpy()) for rate_hz, samples_NC in sounds)
    progress = f"{view.trial.number} of {view.total}"
    if view.message:
        progress = f"{progress}. {view.message}"
    return progress, test.pairs[view.trial.pair].prompt.text, a, b


def build(test: BlindTest) -> Any:
    """Builds the page as ``gradio.Blocks``.

    An error (an invalid name, a full disk) is shown on the page, and the listener stays at the
    trial.
    """
    gr = gradio()

    def updates(listener: str, view: View) -> list[Any]:
        progress, text, a, b = shown(test, view)
        going = view.trial is not None
        number = view.trial.number if going else 0
        return [
            listener,
            number,
            gr.update(visible=False),
            gr.update(visible=True),
            progress,
            gr.update(value=text, visible=going),
            *(gr.update(value=sound, visible=going) for sound in (a, b)),
            gr.update(visible=going),
        ]

    def start(name: str) -> list[Any]:
        try:
            return updates(name, next_view(test, name))
        except (UserError, OSError) as error:
            raise gr.Error(describe(error)) from error

    def answer_with(answer: str) -> Any:
        def answered(listener: str, number: int) -> list[Any]:
            try:
                return updates(listener, give_answer(test, listener, number, answer))
            except (UserError, OSError) as error:
                raise gr.Error(f"The answer was not saved: {describe(error)}") from error

        return answered

    with gr.Blocks(title="Listening test", analytics_enabled=False, delete_cache=_CACHE_S) as page:
        listener = gr.State("")
        number = gr.State(0)
        gr.Markdown(f"# {QUESTION}")
        with gr.Column(visible=True) as door:
            gr.Markdown(WELCOME)
            name = gr.Textbox(label="Your name or a code", max_length=64)
            enter = gr.Button("Start", variant="primary")
        with gr.Column(visible=False) as room:
            progress = gr.Markdown()
            text = gr.Textbox(label="Text", interactive=False, lines=2)
            with gr.Row():
                sounds = [
                    gr.Audio(label=side, interactive=False, buttons=[]) for side in ("A", "B")
                ]
            with gr.Row() as row:
                buttons = {answer: gr.Button(label) for label, answer in CHOICES.items()}
        outputs = [listener, number, door, room, progress, text, *sounds, row]
        hidden = {"api_visibility": "private", "show_progress": "minimal"}
        enter.click(start, [name], outputs, **hidden)
        name.submit(start, [name], outputs, **hidden)
        for answer, button in buttons.items():
            button.click(answer_with(answer), [listener, number], outputs, **hidden)
    return page


def serve(
    page: Any, folders: Sequence[str | Path], host: str = "127.0.0.1", port: int = 7860
) -> None:
    """Serves the page until it is interrupted; by default only to this machine.

    No folder is served, and ``folders`` are blocked. Raises ``UserError`` for an invalid host or
    port, and ``OSError`` for a port that is in use.
    """
    is_here = is_this_machine(host)
    check_port(port)
    if not is_here:
        print(f"anyone who can reach {host}:{port} can listen and answer; there is no password")
    gr = gradio()
    print(f"open {address(host, port)}")
    # system fonts, so that the page loads nothing from another server
    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    hidden = [str(Path(folder).resolve()) for folder in folders]
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            blocked_paths=hidden,
            theme=plain,
            footer_links=[],
            quiet=True,
            ssr_mode=False,
        )
    except OSError as error:
        raise cannot_serve(host, port, error) from error
