"""The button that shares a run on the Hub; the token stays in the login or the environment."""

from typing import Any

from scumble.errors import UserError
from scumble.runs.queue import Queue
from scumble.ui.answers import escaped, problem
from scumble.ui.folders import Folders


def build_push(folders: Folders, queue: Queue, chosen: Any) -> None:
    """Make the panel inside the column that is open.

    Args:
        folders: of the page.
        queue: that the run is from.
        chosen: the widget that holds the name of the run.
    """
    import gradio

    with gradio.Accordion("Share it on the Hub", open=False, elem_id="share"):
        gradio.Markdown(
            "Sends the adapter, its card and sample pictures. Log in once on this machine with "
            "`hf auth login`, or set `HF_TOKEN`, before the page is started."
        )
        with gradio.Row():
            repository = gradio.Textbox(
                label="Repository", placeholder="user/name", elem_id="repository", scale=3
            )
            private = gradio.Checkbox(label="Private", value=True, elem_id="private", min_width=90)
        push = gradio.Button("Push", elem_id="push")
        answer = gradio.Markdown(elem_id="pushed")

    def send(name: str | None, repository: str, private: bool) -> str:
        try:
            return _push(queue, name or "", repository.strip(), private)
        except UserError as error:
            return problem(error, folders)

    push.click(send, [chosen, repository, private], answer)


def _push(queue: Queue, name: str, repository: str, private: bool) -> str:
    from scumble.hub.push import push_folder

    job = queue.job(name)
    if job.is_open:
        raise UserError(f"{name} is not finished yet", "Push it when it is.")
    url = push_folder(job.output_dir, repository or None, private=private)
    return f"**{escaped(name)}** is at {url}"
