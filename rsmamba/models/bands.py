"""The stem's weights for other bands than those they were trained on.

timm's own path, ``create_model(..., pretrained=True, in_chans=13)``, repeats the weights of red,
green and blue over all bands in turn, whatever these measure: near infrared gets the filters of
green or blue, and a list in another order gets the wrong ones without a word.
:func:`rsmamba.models.checkpoints.load_backbone` calls :func:`adapt_stem` instead, which goes by
what the bands are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rsmamba.errors import BandMismatchError
from rsmamba.sensors import Band, bands_of

#: Width in nanometres of a band that does not state one: that of a narrow band.
DEFAULT_WIDTH = 20.0


@dataclass(frozen=True, slots=True)
class Match:
    """Where the weights of a target band come from.

    Attributes:
        target: The band.
        source: The band of the weights that it takes; None for a new one.
        index: Number of that band in the source.
        by: ``"name"`` or ``"wavelength"``; None for a new one.
    """

    target: Band
    source: Band | None = None
    index: int | None = None
    by: Literal["name", "wavelength"] | None = None


def match_bands(source: Sequence[str | Band], target: Sequence[str | Band]) -> tuple[Match, ...]:
    """Find for each target band the source band that measures the same.

    Bands of the same name match. Of those left over, the pair with the nearest centre wavelengths
    matches first, then the next; two bands can match if the centre of one lies within the other,
    ``|a - b| <= max(width_a, width_b) / 2``, where a width that is not known counts as
    :data:`DEFAULT_WIDTH`. Each source band serves one target band at most.

    Args:
        source: Bands of the weights.
        target: Bands of the data.

    Returns:
        One match per target band.

    Raises:
        BandMismatchError: If a target name is unknown, also to the source, or a list has two bands
            of one name.
    """
    # What the weights were trained on may be called anything: it is in a file. A name of the data
    # that is in neither list of names is a slip.
    old, new = _known(source, source), _known(target, source)
    number = {band.label: i for i, band in enumerate(old)}
    found = {t: number[band.label] for t, band in enumerate(new) if band.label in number}
    matches = {t: Match(new[t], old[s], s, "name") for t, s in found.items()}
    pairs = sorted(
        (distance, t, s)
        for t, band in enumerate(new)
        for s, other in enumerate(old)
        if (distance := _distance(band, other)) is not None
    )
    taken = set(found.values())
    for _, t, s in pairs:
        if t not in matches and s not in taken:
            matches[t] = Match(new[t], old[s], s, "wavelength")
            taken.add(s)
    return tuple(matches.get(t, Match(band)) for t, band in enumerate(new))


def adapt_stem(
    weight: Tensor, source: Sequence[str | Band], target: Sequence[str | Band]
) -> tuple[Tensor, str]:
    r"""Weights of the stem's convolution for the target bands.

    Bands that match (:func:`match_bands`) take their weights with them, so that a permutation or a
    subset has exactly the weights it had. A new band gets the mean over all source bands. It must
    not add to the size of the response: with :math:`w_{dc}` the weights of filter :math:`d` for the
    matched band :math:`c` (K of them), :math:`m_d` the mean, N the number of new bands,

    .. math::

        m'_d = m_d \min\Bigl(1, \sqrt{E_d / K} / \lVert m_d \rVert\Bigr), \qquad
        g_d = \sqrt{\frac{E_d}{E_d + N \lVert m'_d \rVert^2}}, \qquad
        E_d = \sum_{c} \lVert w_{dc} \rVert^2,

    and all weights of filter d are multiplied by :math:`g_d`. For independent pixels of unit
    variance the response of filter d has the variance :math:`\sum \lVert w \rVert^2`: that of the
    matched bands before is that of all bands after, and layers behind the stem, and running
    statistics of its normalisation, meet what they were trained on. The first formula only matters
    where source bands are left over: no new band is louder than the matched ones, so that
    :math:`g_d \ge \sqrt{K / (K + N)}`.

    Several dates side by side, the same list of bands n times, take the weights of one date each,
    divided by the root of n.

    Args:
        weight: (D, C, kh, kw) weights for the source bands.
        source: The C bands of the weights, in order.
        target: The bands of the data, in order.

    Returns:
        (D, C', kh, kw) weights for the C' target bands, of the same type and device, and a
        sentence that says where they come from.

    Raises:
        BandMismatchError: If the source bands are not as many as the weights', a target name is
            unknown, a name is there twice, or no target band has anything to do with a source band.
    """
    if weight.shape[1] != len(source):
        raise BandMismatchError(
            f"the stem's weights are for {weight.shape[1]} bands, but {len(source)} are named "
            f"({_listed(source)}): name those that the weights were trained on"
        )
    weight = weight.detach()
    if (dates := _repetitions(target)) > 1:
        once, sentence = adapt_stem(weight, source, target[: len(target) // dates])
        # So that the response keeps its size.
        return once.repeat(1, dates, 1, 1) / dates**0.5, f"{sentence}, for each of {dates} dates"
    if list(source) == list(target):  # also without names that mean anything
        return weight.clone(), f"stem: {_listed(source)} as they are"
    matches = match_bands(source, target)
    chosen = [m.index for m in matches if m.index is not None]
    if not chosen:
        raise BandMismatchError(
            f"no band of the data ({_listed(target)}) is one of the weights ({_listed(source)}) "
            "by name or wavelength: correct the names, or train without these weights"
        )
    sentence = _sentence(matches, source)
    new = len(matches) - len(chosen)
    if not new:
        return weight[:, chosen], sentence
    exact = weight.double()
    mean = exact.mean(dim=1, keepdim=True)
    energy = exact[:, chosen].square().sum(dim=(1, 2, 3), keepdim=True)
    size = mean.square().sum(dim=(1, 2, 3), keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    mean = mean * (energy / len(chosen) / size.clamp_min(tiny)).clamp_max(1).sqrt()
    size = mean.square().sum(dim=(1, 2, 3), keepdim=True)
    gain = (energy / (energy + new * size).clamp_min(tiny)).sqrt()
    columns = [mean if m.index is None else exact[:, m.index, None] for m in matches]
    return (torch.cat(columns, dim=1) * gain).to(weight.dtype), sentence


def _known(bands: Sequence[str | Band], others: Sequence[str | Band]) -> tuple[Band, ...]:
    """Bands by name; a name that is among the others need not mean anything."""
    names = {b.name if isinstance(b, Band) else b.partition("@")[0].strip() for b in others}
    known = bands_of(bands, known=sorted(names))
    labels = [band.label for band in known]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise BandMismatchError(
            f"{', '.join(twice)} occurs more than once in {_listed(bands)}: give each band a name "
            "of its own (NAME@NANOMETRES)"
        )
    return known


def _distance(a: Band, b: Band) -> float | None:
    """Distance of two centres in nanometres; None if neither lies within the other band."""
    if a.wavelength is None or b.wavelength is None:
        return None
    distance = abs(a.wavelength - b.wavelength)
    width = max(a.width or DEFAULT_WIDTH, b.width or DEFAULT_WIDTH)
    return distance if distance <= width / 2 else None


def _sentence(matches: Sequence[Match], source: Sequence[str | Band]) -> str:
    """Where the weights of each band come from."""
    named = [m.target.label for m in matches if m.by == "name"]
    parts = [f"{', '.join(named)} taken by name"] if named else []
    parts += [
        f"{m.target.label} from {m.source.label} by wavelength"
        for m in matches
        if m.source is not None and m.by == "wavelength"
    ]
    if new := [m.target.label for m in matches if m.source is None]:
        parts.append(f"{', '.join(new)} new (mean of the others, scaled)")
    used = {m.index for m in matches}
    if unused := [band for i, band in enumerate(source) if i not in used]:
        parts.append(f"{_listed(unused)} of the weights not used")
    return f"stem: {'; '.join(parts)}"


def _listed(bands: Sequence[str | Band]) -> str:
    """Names for a message."""
    return ", ".join(b.label if isinstance(b, Band) else b for b in bands)


def _repetitions(bands: Sequence[str | Band]) -> int:
    """How often a list repeats a shorter one; 1 if it does not."""
    for period in range(1, len(bands) // 2 + 1):
        repeats, rest = divmod(len(bands), period)
        if rest == 0 and list(bands) == list(bands[:period]) * repeats:
            return repeats
    return 1
