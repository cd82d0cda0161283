"""A base model that stays in memory between pictures, while adapters change on it."""

import gc
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scumble import __version__
from scumble.config import GenerateConfig
from scumble.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from scumble.families import BaseModel
    from scumble.formats import AdapterWeights


@dataclass(frozen=True)
class Drawn:
    """One picture and what it was drawn from.

    Args:
        image: the picture.
        prompt: its prompt, with a known word for each learned one where no adapter acts.
        seed: its seed.
        factor: what the strengths of all adapters were multiplied by.
        adapters: their sources, with the strengths that they acted at.
        base: name of the base that may be shared.
        config: everything else that was asked for.
    """

    image: "Image"
    prompt: str
    seed: int
    factor: float
    adapters: tuple[tuple[str, float], ...]
    base: str
    config: GenerateConfig

    def settings(self) -> dict[str, Any]:
        """What draws this picture again, without paths of this machine."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.config.negative_prompt,
            "seed": self.seed,
            "steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
            "width": self.image.width,
            "height": self.image.height,
            "base": self.base,
            "adapters": {short_name(source): strength for source, strength in self.adapters},
        }

    def save(self, path: Path) -> None:
        """Write a PNG that says what it was drawn from, once for us and once as A1111 does."""
        from PIL.PngImagePlugin import PngInfo

        notes = PngInfo()
        notes.add_itxt("parameters", self._parameters())
        notes.add_itxt("scumble", json.dumps(self.settings(), ensure_ascii=False))
        self.image.save(path, format="PNG", pnginfo=notes)

    def _parameters(self) -> str:
        said = self.settings()
        words = "".join(f" <lora:{name}:{weight:g}>" for name, weight in said["adapters"].items())
        steering = f"\nNegative prompt: {said['negative_prompt']}" * bool(said["negative_prompt"])
        return (
            f"{said['prompt']}{words}{steering}\nSteps: {said['steps']}, Sampler: DPM++ 2M, "
            f"CFG scale: {said['guidance_scale']:g}, Seed: {said['seed']}, "
            f"Size: {said['width']}x{said['height']}, Model: {said['base']}, "
            f"Version: scumble {__version__}"
        )


class Easel:
    """One base at a time with the adapters of the last click on it; visitors take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._pipeline: Any = None
        self._base: BaseModel | None = None
        self._asked: object = None
        self._loaded: dict[str, tuple[object, AdapterWeights]] = {}

    def prepare(self, config: GenerateConfig) -> list[str]:
        """Load what is asked for, as far as it is not loaded yet.

        Returns:
            Lines that the user should read.

        Raises:
            UserError: an adapter or base that cannot be used.
        """
        from scumble.inference import fitting, loading
        from scumble.inference.tokens import describe

        with self._turn:
            base = self._set_up(config)
            family = loading.pipeline_family(self._pipeline)
            named = "" if config.pretrained_model_name_or_path else ", which the adapter names"
            lines = [f"Base model: {base.public_name}{named}."]
            for source, (_, weights) in self._loaded.items():
                name = short_name(source)
                lines += fitting.doubts(family, self._pipeline, weights, name)
                told = describe(weights, (*config.prompt, config.negative_prompt))
                lines += [f"{name}: {line}" for line in told]
            return lines

    def draw(
        self,
        config: GenerateConfig,
        prompt: str,
        seed: int,
        factor: float = 1.0,
        after_step: Callable[[int], None] | None = None,
    ) -> Drawn:
        """Draw one picture.

        Args:
            config: everything but what the next three say.
            prompt: what to draw.
            seed: of its noise.
            factor: multiplies the strengths of all adapters; 0 draws what the base alone makes.
            after_step: called with the steps done, after each; it may raise to stop.

        Raises:
            UserError: an adapter or base that cannot be used, or too little memory.
        """
        import torch

        from scumble.inference import generator, loading
        from scumble.inference.tokens import without_tokens

        texts = [prompt, config.negative_prompt]
        with self._turn:
            base = self._set_up(config)
            pairs = (generator.parse_adapter(text) for text in config.adapter)
            strengths = {source: strength * factor for source, strength in pairs}
            loading.set_strengths(self._pipeline, strengths)
            if factor == 0:
                for _, weights in self._loaded.values():
                    texts = [without_tokens(text, weights) for text in texts]
            sampling = generator.Sampling(
                config.num_inference_steps,
                config.guidance_scale,
                texts[1],
                config.height,
                config.width,
            )
            try:
                (image,) = generator.draw_together(
                    self._pipeline, texts[:1], [seed], sampling, after_step
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "there is too little memory for this picture",
                    "Choose a smaller size, or wait until a run that trains here is done.",
                ) from error
        acting = tuple((name, strength) for name, strength in strengths.items() if strength)
        return Drawn(image, texts[0], seed, factor, acting, base.public_name, config)

    def _set_up(self, config: GenerateConfig) -> "BaseModel":
        """Put the base on the easel, and exactly these adapters on top."""
        from scumble.families import family_of
        from scumble.inference import generator

        sources = [generator.parse_adapter(text)[0] for text in config.adapter]
        named = config.pretrained_model_name_or_path
        asked = named or (_stamp(sources[0]) if sources else None)
        # Asked once: the Hub need not answer for every picture.
        base = self._base if asked == self._asked else None
        base = base or generator.locate_base(config, sources)
        generator.check_size(family_of(base), base, config)
        self._asked = asked
        if base != self._base:
            self._forget()
            alone = replace(config, adapter=(), pretrained_model_name_or_path=base.name)
            self._pipeline, _ = generator.prepare_pipeline(alone)
            self._pipeline.set_progress_bar_config(disable=True)
            self._base = base
        self._put_on(sources)
        return base

    def _put_on(self, sources: Sequence[str]) -> None:
        """Take off what is not wanted or was written anew since, and load what lacks."""
        from scumble.inference import loading

        stamps = {source: _stamp(source) for source in sources}
        for name, (stamp, _) in list(self._loaded.items()):
            if stamps.get(name) != stamp:
                loading.unload_adapters(self._pipeline, name)
                del self._loaded[name]
        family = loading.pipeline_family(self._pipeline)
        for source in sources:
            if source not in self._loaded:
                weights = loading.read_adapter(source, family=family.name)
                loading.load_adapter(self._pipeline, weights, name=source)
                self._loaded[source] = stamps[source], weights

    def _forget(self) -> None:
        """Make room for another base."""
        self._pipeline, self._base = None, None
        self._loaded.clear()
        gc.collect()


def short_name(source: str) -> str:
    """What to call an adapter: its file, or the run's folder where files are all called alike."""
    from scumble.formats.files import FILE_NAMES

    path = Path(source)
    return path.parent.name if path.name in FILE_NAMES else path.stem


def _stamp(source: str) -> object:
    """What changes when the file of an adapter is written anew."""
    from scumble.formats.files import adapter_file

    file = adapter_file(source)
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size
