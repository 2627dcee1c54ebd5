"""The page of a blind listening test, with Gradio (extra ``app``).

Everything that it decides is in ``zoo.listening.trials``.

Sounds reach the browser as unnamed samples, never as files of the two folders, and no folder is
served: nothing on the page says which side is which.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError, describe
from zoo.listening.trials import BlindTest, View, give_answer, heard, next_view, playable

QUESTION = "Which sound fits the text better?"
_CACHE_S = (
    3600,
    86_400,
)  # how often Gradio looks for sounds that it was given, and how old those are that it deletes
CHOICES = {"A fits better": "A", "No difference": "none", "B fits better": "B"}
WELCOME = (
    "Listen to both sounds as often as you like, with headphones if you can. Your answers are saved"
    " at once; give the same name to go on another time."
)
DONE = "All sounds are answered. Thank you! You may close this page."


def gradio() -> Any:
    """The package. Raises ``UserError`` saying how to install it."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(
            'the listening page needs Gradio; install it with: pip install -e ".[app]"'
        ) from error
    return gradio


def shown(test: BlindTest, view: View) -> tuple[str, str, Any, Any]:
    """(progress, text, what is played as A, as B) of a view: all that ever leaves for the browser;
    empty when all is answered.

    Sounds are (rate in Hz, int16 (N, C)). Raises what reading audio raises.
    """
    if view.trial is None:
        return DONE, "", None, None
    sounds = (playable(wave) for wave in heard(test, view.trial))
    a, b = ((rate_hz, samples_NC.numpy()) for rate_hz, samples_NC in sounds)
    progress = f"{view.trial.number} of {view.total}" + (
        f". {view.message}" if view.message else ""
    )
    return progress, test.pairs[view.trial.pair].prompt.text, a, b


def build(test: BlindTest) -> Any:
    """The page as ``gradio.Blocks``.

    A mistake (a bad name, a full disk) is shown on it, and the listener stays at the trial.
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
        listener, number = gr.State(""), gr.State(0)
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
    """Runs the page until it is interrupted: on this machine only unless ``host`` says otherwise,
    with no link to share.

    No folder is served, and ``folders`` not even on request. Raises ``UserError`` for a bad host
    or port, ``OSError`` for a port that is taken.
    """
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(
            f"host must be localhost or an address of this machine such as 127.0.0.1, got {host!r}"
        ) from error
    if not 1 <= port <= 65535:
        raise UserError(f"port must be 1 to 65535, got {port}")
    if not is_here:
        print(f"everybody who can reach {host}:{port} can listen and answer; there is no password")
    gr = gradio()
    print(f"open http://{f'[{host}]' if ':' in host else host}:{port}")
    plain = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )  # no fonts from another server
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
        raise OSError(
            f"cannot serve at {host}:{port} ({error}); is the port taken? Give another --port"
        ) from error
