"""The patches of an image, where they are in it, coloured by what each brings.

Nothing is inferred from sizes in a configuration: a position of the stream stands for the pixels that it depends on,
which one gradient for each position finds. Where patches overlap, a pixel has the sum of what covers it.
"""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allheads.attribution.attribution import Attribution
from allheads.attribution.question import Question
from allheads.errors import AllHeadsError
from allheads.models.observe import run_bridge
from allheads.plots.picture import Picture
from allheads.plots.style import BOTH, figure
from allheads.progress import bar
from allheads.twin.capture import EMBEDDINGS, capturing


def on_image(found: Attribution) -> Picture:
    """What each patch brings over all paths, on the image; what belongs to no patch is in the title.

    Raises `AllHeadsError` for a prompt without an image ``[1, channels, height, width]`` that a stream begins with.
    """
    name, image = _image(found.question)
    begin = next((begin for begin in found.begins if _depends(found.question, begin, name)), None)
    if begin is None:
        raise AllHeadsError(
            "a stream that begins with the patches of the image", f"{', '.join(found.begins)}", "Draw by='token'."
        )
    effects = found.begins[begin].detach().double().cpu()
    colour, patch = torch.zeros(image.shape[-2:], dtype=torch.float64), torch.full(image.shape[-2:], -1)
    areas: list[int] = []
    elsewhere = 0.0
    for position, seen in enumerate(bar("Patches", pixels(found.question, begin, name), total=len(effects))):
        if not seen.any():
            elsewhere += float(effects[position])
            continue
        areas.append(int(seen.sum()))
        colour += seen * effects[position] / areas[-1]
        patch[seen] = position
    colour *= sum(areas) / len(areas)
    size = float(colour.abs().max())
    shown = go.Heatmap(
        z=colour.numpy(),
        customdata=patch.numpy(),
        zmin=-size,
        zmax=size,
        colorscale=BOTH,
        opacity=0.75,
        colorbar={"title": {"text": "logits", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="position %{customdata}<br>effect %{z:.3f}<extra></extra>",
    )
    title = f"Patches bring {float(effects.sum()) - elsewhere:+.2f} of {found.target_value:.2f}"
    title += f", positions of no patch {elsewhere:+.2f}" if len(areas) < len(effects) else ""
    drawn = figure([go.Image(z=_as_picture(image), hoverinfo="skip"), shown], title, height=460, x="", y="")
    drawn.update_xaxes(showticklabels=False, ticks="", showgrid=False, constrain="domain")
    return drawn.update_yaxes(showticklabels=False, ticks="", showgrid=False, scaleanchor="x", autorange="reversed")


def pixels(question: Question, begin: str, name: str) -> Iterator[Bool[Tensor, "height width"]]:
    """For each position that a stream begins with, the pixels of an input that it depends on."""
    image, stream = _begun(question, begin, name)
    probe = torch.randn(stream.shape[-1], generator=torch.Generator().manual_seed(0)).to(stream)
    for position in range(stream.shape[1]):
        (gradient,) = torch.autograd.grad(stream[0, position] @ probe, image, retain_graph=True, allow_unused=True)
        yield torch.zeros(image.shape[-2:]).bool() if gradient is None else gradient[0].cpu().ne(0).any(0)


def _begun(question: Question, begin: str, name: str) -> tuple[Tensor, Tensor]:
    """An input whose gradient can be taken, and what the stream begins with then."""
    image = question.inputs[name].detach().clone().requires_grad_()
    point = f"{begin}.hook_out" if f"{begin}.hook_out" in EMBEDDINGS else begin
    with torch.enable_grad(), capturing(question.twin, [point]) as seen:
        run_bridge(question.twin, {**question.inputs, name: image})
    return image, seen[point]


def _depends(question: Question, begin: str, name: str) -> bool:
    image, stream = _begun(question, begin, name)
    if not stream.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(stream.sum(), image, allow_unused=True)
    return gradient is not None


def _image(question: Question) -> tuple[str, Float[Tensor, "1 channel height width"]]:
    for name, value in question.inputs.items():
        if value.is_floating_point() and value.ndim == 4 and value.shape[1] in (1, 3):
            return name, value
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in question.inputs.items())
    raise AllHeadsError("a prompt with an image [1, channels, height, width]", shapes, "Draw by='token'.")


def _as_picture(image: Float[Tensor, "1 channel height width"]) -> Tensor:
    """Red, green and blue from 0 to 255; values were normalised for the network, so they are stretched."""
    values = image[0].detach().float().cpu().movedim(0, -1).expand(-1, -1, 3)
    spread = (values.max() - values.min()).clamp_min(1e-12)
    return (255 * (values - values.min()) / spread).to(torch.uint8).numpy()
