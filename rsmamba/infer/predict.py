"""Models as functions from raw pixels to class scores."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsmamba.errors import CheckpointError, ConfigError, DataNotFoundError, SpecError
from rsmamba.models.checkpoints import read_checkpoint, read_spec
from rsmamba.spec import ModelSpec

#: Packages from which a checkpoint may name its class. Checked before anything is imported.
TRUSTED_PACKAGES = ("rsmamba", "torchgeo")
#: A class map has one byte per pixel, and one value of it is nodata.
MAX_CLASSES = 255

Augmentation = Literal["none", "flips", "d4"]
#: Quarter turns, and whether the image is mirrored before, of each view of an image.
_VIEWS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}

Model = str | Path | nn.Module | Callable[[Tensor], Tensor]


class Predictor:
    """Raw pixels in, class scores out.

    Get one from :func:`load_predictor`.

    Args:
        forward: Function from (B, C, H, W) to (B, K, H, W).
        spec: What the model is and expects; None for a function of raw pixels without one.
        logits: Whether ``forward`` takes normalised images and gives logits; else it takes raw
            values and gives scores.
        device: Where images are sent, and where scores stay.
        bf16: Run ``forward`` under bfloat16 autocast.
        tta: Test-time augmentation: the scores are the mean over the image as it is and its mirror
            images ("flips"), or all eight turns and mirror images of the square ("d4").

    Attributes:
        spec: As given.
        device: As given.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        spec: ModelSpec | None,
        *,
        logits: bool,
        device: torch.device,
        bf16: bool = False,
        tta: Augmentation = "none",
    ) -> None:
        if tta not in _VIEWS:
            raise ConfigError(f"tta={tta!r}: use one of {', '.join(_VIEWS)}")
        self.spec = spec
        self.device = device
        self._views = _VIEWS[tta]
        self._forward = forward
        self._logits = logits
        self._bf16 = bf16
        if spec is not None:
            self._mean = torch.tensor(spec.mean, device=device).view(-1, 1, 1)
            self._std = torch.tensor(spec.std, device=device).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores of a batch.

        Args:
            images: (B, C, H, W) float32 raw pixel values, without NaN; of a change detector the
                bands of both dates, (B, 2 C, H, W).

        Returns:
            (B, K, H, W) float32 scores on :attr:`device`. From logits they are probabilities; a
            single logit gives two classes, (1 - p, p).

        Raises:
            ConfigError: If the model does not give one score map per class at the image's size.
        """
        images = images.to(self.device, non_blocking=True)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16),
        ):
            if self._logits and self.spec is not None:
                if self.spec.task == "change":
                    images = images.unflatten(1, (2, self.spec.in_channels))
                images = (images * self.spec.scale - self._mean) / self._std
            scores = self._scores(images)
            for turns, mirrored in self._views[1:]:
                turned = torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1))
                back = torch.rot90(self._scores(turned), -turns, (-2, -1))
                scores += back.flip(-1) if mirrored else back
            return scores / len(self._views) if len(self._views) > 1 else scores

    def _scores(self, images: Tensor) -> Tensor:
        """Scores of one view of a batch."""
        scores = self._forward(images)
        self._check(scores, images)
        scores = scores.float()
        if not self._logits:
            return scores
        if scores.shape[1] == 1:
            positive = scores.sigmoid()
            return torch.cat([1 - positive, positive], dim=1)
        return scores.softmax(dim=1)

    def free_memory(self) -> None:
        """Give back what the device keeps for later, after it has run out of memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def class_names(self, count: int) -> tuple[str, ...]:
        """Names of ``count`` classes.

        Raises:
            ConfigError: If there are more classes than a class map can hold.
            SpecError: If the spec names another number of classes.
        """
        if count > MAX_CLASSES:
            raise ConfigError(f"{count} classes do not fit a class map: at most {MAX_CLASSES}")
        named = self.spec.classes if self.spec is not None else ()
        if not named:
            return tuple(f"class_{i}" for i in range(count))
        if len(named) == 1 and count == 2 and self._logits:
            return ("background", *named)
        if len(named) != count:
            raise SpecError(
                f"the model gives {count} classes but its spec names {len(named)} "
                f"({', '.join(named)}): correct the spec (--spec FILE)"
            )
        return named

    def synchronize(self) -> None:
        """Wait until the device has done its work, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _check(scores: Any, images: Tensor) -> None:
        wanted = f"({len(images)}, classes, {images.shape[-2]}, {images.shape[-1]})"
        if not isinstance(scores, Tensor):
            raise ConfigError(f"the model returned {type(scores).__name__}, not a tensor {wanted}")
        shape = tuple(scores.shape)
        if len(shape) != 4 or (shape[0], *shape[2:]) != (len(images), *images.shape[-2:]):
            raise ConfigError(f"the model returned a tensor of shape {shape}, expected {wanted}")


def load_predictor(
    model: "Model | Predictor",
    spec: ModelSpec | str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    bf16: bool = False,
    tta: Augmentation = "none",
) -> Predictor:
    """Make a predictor from whatever a user has.

    Args:
        model: A Lightning checkpoint (``.ckpt``) or ``.safetensors`` file that carries a spec; a
            module that maps normalised images to logits, with ``spec``; or any other callable
            from raw (B, C, H, W) float values to (B, K, H, W) scores, whose spec may be None. A
            module is moved to the device and put in evaluation mode. A predictor is returned as
            it is.
        spec: A spec, or its JSON file; replaces the one in the checkpoint.
        device: Where to run; CUDA if there is one.
        bf16: Run the forward under bfloat16 autocast.
        tta: Test-time augmentation, see :class:`Predictor`.

    Returns:
        The predictor.

    Raises:
        DataNotFoundError: If a file is not there.
        CheckpointError: If the checkpoint is unreadable, has no spec, names a class that is not
            trusted, or its weights do not fit.
        SpecError: If the spec is invalid, a module has none, or the model is a backbone or of
            pretraining, which predict no classes.
        ConfigError: If the device does not exist or the model does not segment.
    """
    if isinstance(model, Predictor):
        return model
    where = _device(device)
    if isinstance(spec, str | Path):
        spec = read_spec(spec)
    if isinstance(model, str | Path):
        model, spec = _load_checkpoint(Path(model), spec)
    if not isinstance(model, nn.Module):
        return Predictor(model, spec, logits=False, device=where, bf16=bf16, tta=tta)
    if spec is None:
        raise SpecError(
            "a torch module needs a ModelSpec (bands, mean, deviation, classes): pass spec=..., or "
            "wrap it in a function from raw pixels to scores"
        )
    _check_task(spec, "this one")
    return Predictor(model.to(where).eval(), spec, logits=True, device=where, bf16=bf16, tta=tta)


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, if it works."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {device} is not usable: {_first_line(error)}; use cpu"
        ) from error
    return where


def _load_checkpoint(path: Path, spec: ModelSpec | None) -> tuple[nn.Module, ModelSpec]:
    """The task of a checkpoint, with its weights, and its spec."""
    if path.is_dir():
        raise DataNotFoundError(f"{path} is a folder: name the .ckpt or .safetensors file in it")
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such checkpoint; `rsmamba fit` writes one")
    state, text = read_checkpoint(path)
    if spec is None:
        if text is None:
            raise CheckpointError(
                f"{path} carries no ModelSpec (bands, mean, deviation, classes): "
                "supply one with --spec FILE (JSON)"
            )
        try:
            spec = ModelSpec.from_json(text)
        except SpecError as error:
            raise CheckpointError(f"{path}: {error}; supply another with --spec FILE") from error
    task = _build_task(path, spec)
    try:
        task.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} do not fit {spec.task_class}: {_first_mismatches(error)}"
        ) from error
    return _of_pairs(task) if spec.task == "change" else task, spec


class _Stacked(nn.Module):
    """A change detector that takes the bands of both dates as one image (B, 2 C, H, W)."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        """Logits of pairs (B, 2, C, H, W)."""
        logits: Tensor = self.task(images.flatten(1, 2))
        return logits


def _of_pairs(task: nn.Module) -> nn.Module:
    """A change detector as a model of pairs; TorchGeo's stacks them for most of its models."""
    stock = type(task).__module__.startswith("torchgeo.")
    model = str(getattr(task, "hparams", {}).get("model"))
    siamese = model.startswith("fcsiam") or model == "changevit"
    return _Stacked(task) if stock and not siamese else task


def _check_task(spec: ModelSpec, name: str) -> None:
    """Refuse models that give no class per pixel."""
    if spec.task in {"backbone", "pretraining"}:
        raise SpecError(
            f"a map needs a segmentation model; {name} is a {spec.task} checkpoint, which predicts "
            "no classes: name it as `weights:` in a recipe, fine-tune, and map the result"
        )
    if spec.task not in {"segmentation", "change"}:
        raise ConfigError(
            f"a map needs a segmentation model or a change detector; {name} does {spec.task}"
        )


def _build_task(path: Path, spec: ModelSpec) -> nn.Module:
    """An untrained task of the class that the spec names, if that class is trusted."""
    _check_task(spec, str(path))
    module_name, _, class_name = spec.task_class.rpartition(".")
    package = module_name.partition(".")[0]
    refusal = CheckpointError(
        f"{path} names the class {spec.task_class!r}: only tasks of "
        f"{' and '.join(TRUSTED_PACKAGES)} are loaded"
    )
    if package not in TRUSTED_PACKAGES:
        raise refusal
    import_module("rsmamba.models")  # registers the backbones that task_kwargs name
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise refusal from error
    # what a module of ours merely imports is not ours
    owner = getattr(found, "__module__", "").partition(".")[0]
    if not (isinstance(found, type) and issubclass(found, nn.Module)) or (
        owner not in TRUSTED_PACKAGES
    ):
        raise refusal
    kwargs = dict(spec.task_kwargs)
    if "weights" in kwargs:  # the checkpoint has them all: neither look for a file nor download
        kwargs["weights"] = None
    try:
        return found(**kwargs)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        shown = json.dumps(kwargs, default=str)
        raise CheckpointError(
            f"{path}: {spec.task_class} cannot be built with {shown}: {error}"
        ) from error


def _first_line(error: Exception) -> str:
    """The start of a message; torch's go on for pages."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _first_mismatches(error: RuntimeError) -> str:
    """The gist of load_state_dict's message, in one line."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    text = " ".join(lines) or str(error)
    return text if len(text) <= 400 else text[:400] + " ..."
