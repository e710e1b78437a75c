"""Spectral bands: what sensors measure, and how bands are named.

A band is named in one of these ways, in any mixture; upper and lower case are the same:

- a common name, as in the ``eo:common_name`` of STAC: ``red``, ``nir``, ``swir16``, ``rededge071``;
- a sensor and its own name or the common one: ``sentinel-2:B04``, ``landsat-8:B5``, ``naip:NIR``,
  or the own name alone with ``sensor="landsat-8"`` for the list;
- ``R``, ``G`` and ``B``, all three in the list; they are NAIP's;
- Sentinel-2's own names with their zero, ``B01`` to ``B12`` and ``B8A``. One of ``B01`` to ``B09``,
  ``B8A`` or ``B12`` in a list tells that its ``B2``, ``B10`` and ``B11`` are Sentinel-2's too. Any
  other bare number is refused: ``B4`` is red on Sentinel-2 and on Landsat 8, near infrared on
  Landsat 7; ``SR_B4`` likewise;
- a custom band, ``NAME@NANOMETRES`` or ``NAME@NANOMETRES/WIDTH`` (``red@660``, ``nir@842/115``),
  and ``NAME@`` where there is no wavelength (radar, elevation); in Python also a :class:`Band`.

Two bands are the same by name if their common names agree, or without one their own names.

A leaf module: it imports nothing but the standard library and :mod:`rsmamba.errors`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from rsmamba.errors import BandMismatchError

CUSTOM = "NAME@NANOMETRES (or NAME@ if it has no wavelength)"


@dataclass(frozen=True, slots=True)
class Band:
    """One band of an image.

    Attributes:
        name: The sensor's own name, or any.
        wavelength: Centre in nanometres; None where there is none (radar, elevation) or it is not
            known.
        width: Full width at half maximum in nanometres, if known.
        gsd: Ground sampling distance of the instrument in metres, if fixed.
        common_name: STAC's name for what it measures, if it has one.

    Raises:
        BandMismatchError: If wavelength or width is not a positive number.
    """

    name: str
    wavelength: float | None = None
    width: float | None = None
    gsd: float | None = None
    common_name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a length."""
        for value in (self.wavelength, self.width):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise BandMismatchError(
                    f"band {self.name}: {value} nm is no wavelength or width: give a positive one"
                )

    @property
    def label(self) -> str:
        """The common name if there is one, else the own name in lower case: what is compared."""
        return self.common_name or self.name.lower()


@dataclass(frozen=True, slots=True)
class Sensor:
    """An instrument and its bands.

    Attributes:
        name: As used in ``NAME:BAND``.
        bands: In the order of the sensor's numbering.
        source: Where the figures are from.
    """

    name: str
    bands: tuple[Band, ...]
    source: str

    def band(self, name: str) -> Band:
        """The band of that own or common name.

        Raises:
            BandMismatchError: If there is none; names the nearest.
        """
        wanted = _plain(name)
        for band in self.bands:
            if wanted in (_plain(band.name), band.common_name):
                return band
        raise BandMismatchError(
            f"{self.name} has no band {name!r}{_nearest(name, self.bands)}; give a custom band as "
            f"{CUSTOM}"
        )


def _range(
    name: str, low: float, high: float, gsd: float | None = None, common: str | None = None
) -> Band:
    """A band from its lower and upper limit in nanometres."""
    return Band(name, (low + high) / 2, high - low, gsd, common or name)


# Limits of the table "Common Band Names" of https://github.com/stac-extensions/eo (version 1.1).
_COMMON_LIMITS = {
    "pan": (400, 1000),
    "coastal": (400, 450),
    "blue": (450, 530),
    "green": (510, 600),
    "green05": (510, 550),
    "yellow": (580, 620),
    "red": (620, 690),
    "rededge": (690, 790),
    "rededge071": (690, 730),
    "rededge075": (730, 760),
    "rededge078": (760, 790),
    "nir": (760, 1000),
    "nir08": (800, 900),
    "nir09": (900, 1000),
    "cirrus": (1350, 1400),
    "swir16": (1550, 1750),
    "swir22": (2080, 2350),
    "lwir": (10400, 12500),
    "lwir11": (10500, 11500),
    "lwir12": (11500, 12500),
}

#: Bands by common name, of no sensor in particular.
COMMON: Mapping[str, Band] = MappingProxyType(
    {name: _range(name, low, high) for name, (low, high) in _COMMON_LIMITS.items()}
)

_SENTINEL_2 = Sensor(
    "sentinel-2",
    (
        Band("B01", 443, 20, 60, "coastal"),
        Band("B02", 490, 65, 10, "blue"),
        Band("B03", 560, 35, 10, "green"),
        Band("B04", 665, 30, 10, "red"),
        Band("B05", 705, 15, 20, "rededge071"),
        Band("B06", 740, 15, 20, "rededge075"),
        Band("B07", 783, 20, 20, "rededge078"),
        Band("B08", 842, 115, 10, "nir"),
        Band("B8A", 865, 20, 20, "nir08"),
        Band("B09", 945, 20, 60, "nir09"),
        Band("B10", 1375, 30, 60, "cirrus"),
        Band("B11", 1610, 90, 20, "swir16"),
        Band("B12", 2190, 180, 20, "swir22"),
    ),
    "ESA, Sentinel-2 User Handbook (2015), nominal figures of the MultiSpectral Instrument: "
    "https://sentinel.esa.int/documents/247904/685211/Sentinel-2_User_Handbook",
)

_OLI_TIRS = (
    _range("B1", 430, 450, 30, "coastal"),
    _range("B2", 450, 510, 30, "blue"),
    _range("B3", 530, 590, 30, "green"),
    _range("B4", 640, 670, 30, "red"),
    _range("B5", 850, 880, 30, "nir08"),
    _range("B6", 1570, 1650, 30, "swir16"),
    _range("B7", 2110, 2290, 30, "swir22"),
    _range("B8", 500, 680, 15, "pan"),
    _range("B9", 1360, 1380, 30, "cirrus"),
    _range("B10", 10600, 11190, 100, "lwir11"),
    _range("B11", 11500, 12510, 100, "lwir12"),
)
_USGS = (
    "USGS, What are the band designations for the Landsat satellites? "
    "https://www.usgs.gov/faqs/what-are-band-designations-landsat-satellites"
)

# NAIP is flown with several cameras. These are the limits of one that is much used, the Leica
# ADS100, in https://maps.trpa.org/server/rest/services/2018_Imagery/MapServer/0/iteminfo; the
# distance is that of the years from 2018.
_NAIP = Sensor(
    "naip",
    (
        _range("R", 619, 651, 0.6, "red"),
        _range("G", 525, 585, 0.6, "green"),
        _range("B", 435, 495, 0.6, "blue"),
        _range("NIR", 808, 882, 0.6, "nir"),
    ),
    "USDA National Agriculture Imagery Program; limits of the Leica ADS100",
)

#: The sensors that are known by name.
SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {
        sensor.name: sensor
        for sensor in (
            _SENTINEL_2,
            Sensor("landsat-8", _OLI_TIRS, _USGS),
            Sensor("landsat-9", _OLI_TIRS, _USGS),
            _NAIP,
            Sensor(
                "rgb",
                (COMMON["red"], COMMON["green"], COMMON["blue"]),
                "any camera; limits of STAC's common names, https://github.com/stac-extensions/eo",
            ),
        )
    }
)

_LETTERS = {"r", "g", "b"}
_NUMBERED = re.compile(r"(?:s[rt]_)?b0?(\d+a?)")
_SENTINEL_2_ONLY = re.compile(r"b(?:0[1-9]|0?8a|12)")
# names that data modules and GDAL give to bands of which they know nothing
_PLACEHOLDER = re.compile(r"(?:band|channel|layer)?[ _-]?\d*")


def bands_of(
    spec: str | Sequence[str | Band],
    *,
    sensor: str | None = None,
    known: Sequence[str] = (),
) -> tuple[Band, ...]:
    """Bands from the name of a sensor or a list of names; see the head of this module.

    Args:
        spec: ``"sentinel-2"``, or names and bands in the order of an image's channels.
        sensor: Whose own names the list uses; needed for bare Landsat names (``B4``).
        known: Names of any meaning that are accepted as they are, numbers (``B4``) excepted.

    Returns:
        One band per channel.

    Raises:
        BandMismatchError: If a name is unknown or ambiguous; names the nearest one that is known
            and how to give a custom band.
    """
    if isinstance(spec, str):
        return _sensor(spec).bands
    own = None if sensor is None else _sensor(sensor)
    told = _told(spec)
    accepted = {n.lower() for n in known}
    return tuple(n if isinstance(n, Band) else _band(n, own, told, accepted) for n in spec)


def check_bands(
    data: Sequence[str | None],
    model: Sequence[str],
    where: str,
    *,
    remedy: str = "select and order them alike, or adapt the stem's weights (load_backbone)",
    described: bool = False,
) -> None:
    """Refuse data whose bands are not those of a model.

    Names agree if they are the same text or name the same band (``B04``, ``sentinel-2:B4`` and
    ``red``). A name that is None, empty or a mere number (``band_3``) says nothing and passes.

    Args:
        data: Names of the data's bands, one per channel.
        model: Names of the model's.
        where: What the data are: the start of the message.
        remedy: End of the message.
        described: The data's names are the free text of a file, which may say anything: only text
            that is another band's name counts.

    Raises:
        BandMismatchError: If number, order or names differ; lists both.
    """
    both = (
        f"{len(data)} ({', '.join(n or '?' for n in data)}), the model expects "
        f"{len(model)} ({', '.join(model)}): {remedy}"
    )
    if len(data) != len(model):
        raise BandMismatchError(f"{where}: the number of bands is {both}")
    found = [_meaning(n, data) for n in data]
    expected = [_meaning(n, model) for n in model]
    wrong = False
    for (text, band), (wanted, other) in zip(found, expected, strict=True):
        if not text or not wanted or text == wanted or (band and band == other):
            continue
        elsewhere = any(text == t or (band and band == b) for t, b in expected)
        wrong |= elsewhere or not described or bool(band and other)
    if wrong:
        same = sorted(b or t for t, b in found) == sorted(b or t for t, b in expected)
        raise BandMismatchError(f"{where}: the {'order' if same else 'list'} of bands is {both}")


def labels_of(names: Sequence[str | None]) -> tuple[str | None, ...]:
    """What each of a list of names means: :attr:`Band.label`; None where that is not known.

    Args:
        names: Names of any kind; None and mere numbers (``band_3``) say nothing.
    """
    return tuple(_meaning(name, names)[1] for name in names)


def _meaning(name: str | None, names: Sequence[str | None]) -> tuple[str, str | None]:
    """A name for comparison, empty if it says nothing, and the label of the band it is known as."""
    if name is None or _PLACEHOLDER.fullmatch(name.strip().lower()):
        return "", None
    plain = _plain(name.partition("@")[0])
    try:
        return plain, _band(name, None, _told(names), set()).label
    except BandMismatchError:
        return plain, None


def _told(names: Sequence[str | Band | None]) -> Sensor | None:
    """The sensor that bare numbers or letters in a list belong to, if the list tells."""
    texts = {n.strip().lower() for n in names if isinstance(n, str)}
    if any(_SENTINEL_2_ONLY.fullmatch(n) for n in texts):
        return _SENTINEL_2
    return _NAIP if texts >= _LETTERS else None


def _band(name: str, own: Sensor | None, told: Sensor | None, accepted: set[str]) -> Band:
    """One band from its name; see :func:`_told`."""
    name = name.strip()
    if "@" in name:
        return _custom(name)
    prefix, colon, rest = name.partition(":")
    if colon:
        return _sensor(prefix).band(rest)
    if own is not None:
        return own.band(name)
    lower = name.lower()
    if lower in COMMON:
        return COMMON[lower]
    numbered = _NUMBERED.fullmatch(lower)
    if (told is _SENTINEL_2 and numbered and lower[0] == "b") or (
        told is _NAIP and lower in _LETTERS
    ):
        return told.band(name)
    if numbered:  # never accepted as it is: the same number may be another band in another list
        raise BandMismatchError(
            f"band {name} differs between sensors: write sentinel-2:{name} or landsat-8:{name}, a "
            f"common name (red, nir, ...), or a custom band as {CUSTOM}"
        )
    if lower in accepted:
        return Band(name)
    raise BandMismatchError(
        f"unknown band {name!r}{_nearest(name, COMMON.values())}; give a custom band as {CUSTOM}"
    )


def _custom(text: str) -> Band:
    """A band from NAME@NANOMETRES/WIDTH."""
    name, _, rest = (part.strip() for part in text.partition("@"))
    centre, slash, width = rest.partition("/")
    common = name.lower() if name.lower() in COMMON else None
    try:
        if not name or (slash and not centre.strip()):
            raise ValueError
        return Band(
            name,
            float(centre) if centre else None,
            float(width) if slash else None,
            common_name=common,
        )
    except ValueError:
        raise BandMismatchError(
            f"{text!r} is no custom band: write {CUSTOM}, like red@660 or nir@842/115"
        ) from None


def _sensor(name: str) -> Sensor:
    """A sensor by name; ``Sentinel2`` and ``sentinel_2`` are also understood."""
    plain = re.sub(r"[\s_-]", "", name.lower())
    for known, sensor in SENSORS.items():
        if known.replace("-", "") == plain:
            return sensor
    near = get_close_matches(name.lower(), SENSORS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BandMismatchError(
        f"unknown sensor {name!r}: {hint}known are {', '.join(SENSORS)}; list the bands of another "
        f"one, custom ones as {CUSTOM}"
    )


def _plain(name: str) -> str:
    """A name for comparison: B04, B4 and SR_B4 are one within a sensor."""
    lower = name.strip().lower()
    numbered = _NUMBERED.fullmatch(lower)
    return f"b{numbered[1]}" if numbered else lower


def _nearest(name: str, bands: Iterable[Band]) -> str:
    """``", the nearest known one is NAME"``, or all common names if none is near."""
    names = sorted({n for b in bands for n in (b.label, b.name.lower())})
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    return f", the nearest known one is {near[0]}" if near else f", known are {', '.join(names)}"
