"""Pretrained folders of transformers and diffusers, loaded safely: local safetensors, no code from the folder."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.errors
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cxrsynth.errors import ModelError, in_one_line, in_words
from cxrsynth.runtime.files import LONGEST_JSON, read_json, what_it_is

# What transformers 5 raises where a setting has another type than its class expects; a plain exception.
_WRONG_TYPE: type[Exception] = getattr(huggingface_hub.errors, "StrictDataclassError", ValueError)
# What the libraries raise, depending on what is wrong with the files of a folder.
LOADING_ERRORS = (
    _WRONG_TYPE,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    ImportError,
    SafetensorError,
)
# transformers' name of a warning that it gives once for each tokenizer.
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
_KINDS = {str: "a string", list: "a list", bool: "true or false", type(None): "null"}
_HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>(?!sha256:)[^@\s]+))?")
# Numbers of positions, which earlier releases of transformers saved with the weights.
_NOT_LEARNED = ("position_ids",)
# One file or one of several, of weights in full precision or in a variant such as fp16.
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.safetensors")
# A word is what is no name in brackets, as special tokens have, and has a letter or digit.
# A network may be larger than its file where weights are tied, or some are not learned.
_SPARE_NUMBERS, _LARGER = 1_000_000, 2
_SPECIAL_NAME = re.compile(r"[<\[].*[>\]]")
_TOKENIZER_FILES = (
    "tokenizer.json, or the vocabulary in the files of its kind: vocab.json and merges.txt (CLIP, RoBERTa),"
    " vocab.txt (BERT), a SentencePiece model (T5, Gemma, XLM-RoBERTa)"
)
_FOLDER_FILES = "a folder of transformers or diffusers with config.json and weights in safetensors"
_INDEX = "names of safetensors that lie beside the index"
_ATTENTION = "attn_implementation"  # in a part's settings, too, and with an underscore before it
_SIZE_MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[[^]]*\])\) from checkpoint,"
    r" the shape in current model is torch\.Size\((\[[^]]*\])\)"
)
# Settings, weights and vocabularies; never pickles, never code.
MODEL_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
_DOWNLOADED = [f"*{suffix}" for suffix in MODEL_SUFFIXES]


class Unmatched(NamedTuple):
    """Names of tensors that differ between a file of weights and its network.

    `missing` tensors are in the network only and hold no trained values, `mismatched` ones have another shape in the
    file, `unexpected` ones are in the file only.
    """

    missing: frozenset[str] = frozenset()
    mismatched: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()

    @classmethod
    def between(cls, network: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> "Unmatched":
        """What differs between a network's `state_dict` and weights by name."""
        shared = network.keys() & weights.keys()
        return cls(
            missing=frozenset(network.keys() - shared),
            mismatched=frozenset(name for name in shared if network[name].shape != weights[name].shape),
            unexpected=frozenset(weights.keys() - shared),
        )

    def refuse(
        self,
        folder: Path,
        role: str,
        *,
        may_miss: Sequence[str] = (),
        may_hold: Sequence[str] | None = (),
        expected: str = _FOLDER_FILES,
    ) -> None:
        """Refuse weights that do not match their network; arguments as for `load_pretrained` and `unusable`.

        Raises:
            ModelError: naming one of the tensors.
        """

        def refuse(problem: str, names: frozenset[str], allowed: Sequence[str] = ()) -> None:
            refused = sorted(name for name in names if not any(part in name for part in allowed))
            if refused:
                raise unusable(
                    folder, role, f"{len(refused)} tensors are {problem}, such as {refused[0]}", expected=expected
                )

        refuse("missing from its weights", self.missing, may_miss)
        refuse("of another shape than the network's", self.mismatched)
        if may_hold is not None:
            refuse("in its weights that the network does not have", self.unexpected, (*may_hold, *_NOT_LEARNED))


def load_pretrained(
    kind: Any,
    folder: Path,
    *,
    role: str,
    dtype: torch.dtype = torch.float32,
    may_miss: Sequence[str] = (),
    may_hold: Sequence[str] | None = (),
) -> tuple[Any, frozenset[str]]:
    """Load a network of transformers or diffusers from a local folder, on the CPU and in eval mode.

    Only local safetensors are read, code in the folder is never run, and the weights must match the network: a tensor
    that the file lacks would otherwise keep its random values.

    Args:
        kind: the class with `from_pretrained`, such as `AutoModel` or `AutoencoderKL`.
        folder: its `config.json` and weights.
        role: what it is to be, for messages: "an image encoder".
        dtype: floating-point type of its weights.
        may_miss: the weights may lack tensors whose name contains one of these.
        may_hold: the weights may hold further tensors whose name contains one of these; None allows any, since those of
            a classifier hold more than its encoder.

    Returns:
        The network, and the names of the tensors that its weights lack, which hold random values.

    Raises:
        ModelError: if the folder cannot be loaded, asks for its own code, or its weights do not match.
    """
    network, unmatched = load_unchecked(kind, folder, role=role, dtype=dtype)
    unmatched.refuse(folder, role, may_miss=may_miss, may_hold=may_hold)
    return network, unmatched.missing


def load_unchecked(kind: Any, folder: Path, *, role: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Unmatched]:
    """`load_pretrained` before the check: the network, and the tensors that do not match it, for the caller to refuse.

    Raises:
        ModelError: if the folder cannot be loaded, or asks for its own code.
    """
    _check_folder(folder, role)
    of_transformers = kind.__module__.startswith("transformers")
    check_weights_name(folder, of_diffusers=not of_transformers)
    _check_indexes(folder)
    if of_transformers:
        _refuse_other_weights(folder)
    check_size(folder, role, lambda: _from_settings(kind, folder))
    if of_transformers:
        # Without the second argument, a tensor of another shape would be an error that does not name it.
        further: dict[str, Any] = {"trust_remote_code": False, "ignore_mismatched_sizes": True}
    else:
        # Each tensor is converted as it is read: a large UNet in half precision is never in memory in float32.
        further = {"torch_dtype": dtype}
    if (found := variant(folder)) is not None:
        further["variant"] = found
    try:
        with quiet_libraries():
            network, loading = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **further
            )
    except LOADING_ERRORS as error:
        raise unusable(folder, role, reason(error)) from None
    mismatched = frozenset(name if isinstance(name, str) else str(name[0]) for name in loading["mismatched_keys"])
    # An index may name tensors that its files lack; diffusers leaves them without memory and does not report them.
    absent = {name for name, weight in network.named_parameters() if weight.is_meta}
    unmatched = Unmatched(
        missing=frozenset(absent.union(loading["missing_keys"])) - mismatched,
        mismatched=mismatched,
        unexpected=frozenset(loading["unexpected_keys"]),
    )
    # By hand: the argument that asks for a type has another name before transformers 4.56.
    return (network.to(dtype) if of_transformers else network).eval(), unmatched


def check_size(folder: Path, role: str, make: Callable[[], Any]) -> None:
    """Refuse a configuration of a network far larger than its weights: it would fill the memory before it is refused.

    Args:
        folder: with `config.json` and weights.
        role: what it is to be, for messages.
        make: makes the network; called only where the configuration has a number above all sizes of tensors.

    Raises:
        ModelError: saying how far the two are apart.
    """
    settings = _settings(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = dict(_whole_numbers(settings))
    shapes = _shapes(folder)
    longest = max((side for shape in shapes for side in shape), default=0)
    if not shapes or max(named.values(), default=0) <= longest:
        return  # no tensor of the network can be longer than those of the file
    layers = {name: number for name, number in named.items() if "layers" in name or "depth" in name}
    name = max(layers, key=layers.__getitem__, default="")
    if name and layers[name] > len(shapes):
        raise unusable(
            folder, role, f"config.json has {name} {layers[name]:,}, but the weights are {len(shapes)} tensors"
        )
    try:
        with quiet_libraries(), torch.device("meta"):
            network = make()
    except LOADING_ERRORS as error:
        raise unusable(folder, role, reason(error)) from None
    wanted, found = sum(weight.numel() for weight in network.parameters()), sum(map(math.prod, shapes))
    if wanted > _LARGER * found + _SPARE_NUMBERS:
        raise unusable(
            folder, role, f"config.json describes a network of {wanted:,} weights, but there are {found:,} in its files"
        )


def _from_settings(kind: Any, folder: Path) -> Any:
    """A network without its weights."""
    import transformers

    if not kind.__module__.startswith("transformers"):
        return kind.from_config(kind.load_config(folder, local_files_only=True))
    config = _config(getattr(kind, "config_class", None) or transformers.AutoConfig, folder)
    return kind(config) if getattr(kind, "config_class", None) else kind.from_config(config)


def load_settings(kind: Any, folder: Path, *, role: str) -> Any:
    """Load settings of a network of transformers from a local folder; code in the folder is never run.

    Args:
        kind: the class with `from_pretrained`, such as `BertConfig`.
        folder: with its `config.json`.
        role: what the folder is to be, for messages.

    Raises:
        ModelError: if there is no such folder, or it asks for its own code.
        Exception: one of `LOADING_ERRORS` if the class does not take what is in the file.
    """
    _check_folder(folder, role)
    with quiet_libraries():
        return _config(kind, folder)


def _config(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _shapes(folder: Path) -> list[list[int]]:
    """Shapes of all tensors in the weights of a folder; of files that cannot be read, none."""
    shapes = []
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                shapes += [list(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError):
            continue
    return shapes


def _whole_numbers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers in settings, each with the name that it stands under."""
    if isinstance(value, int):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _whole_numbers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _whole_numbers(inner, name)


def check_weights_name(folder: Path, *, of_diffusers: bool) -> None:
    """Refuse a folder whose safetensors have none of the names that the library looks for.

    Args:
        folder: of a network.
        of_diffusers: whether the network is one of diffusers, rather than of transformers.

    Raises:
        ModelError: naming the file and the name it should have.
    """
    stem = "diffusion_pytorch_model" if of_diffusers else "model"
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    named = any(name.startswith((f"{stem}.", f"{stem}-")) for name in found)
    if found and not named and not list(folder.glob(f"{stem}*.index.json")):
        library = "diffusers" if of_diffusers else "transformers"
        raise ModelError(
            f"{folder / found[0]}: weights under another name than {library} reads"
            f"\n  expected: {stem}.safetensors; if these are the network's weights, rename the file"
        )


def _check_indexes(folder: Path) -> None:
    """Refuse an index that names anything but safetensors beside it: the libraries would read pickles, and from afar.

    Raises:
        ModelError: naming the index and the file.
    """
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        files = read_settings(path, expected=_INDEX).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ModelError(f"{path}: names no files of weights\n  expected: {_INDEX}")
        for name in sorted(set(map(str, files.values()))):
            if Path(name).name != name or Path(name).suffix != ".safetensors":
                raise ModelError(f"{path}: names {name!r} as a file of weights\n  expected: {_INDEX}")


def _refuse_other_weights(folder: Path) -> None:
    """Refuse what makes transformers load other weights than those that are checked and whose digest is recorded.

    Raises:
        ModelError: naming the file.
    """
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.exists():
        raise ModelError(
            f"{adapter}: an adapter, which transformers would add to the network\n"
            "  expected: weights with the adapter merged into them (merge_and_unload of peft), or remove this file"
        )
    settings = _settings(config)
    if isinstance(settings, dict) and settings.get("transformers_weights"):
        raise ModelError(
            f"{config}: takes weights from another file (transformers_weights)\n"
            "  expected: weights in model.safetensors, or in several files with an index; remove transformers_weights"
        )


def variant(folder: Path) -> str | None:
    """The variant of weights in a folder that holds no others, such as `fp16`; None where there are plain ones."""
    found = [match["variant"] for path in folder.iterdir() if (match := _WEIGHTS.fullmatch(path.name))]
    return None if not found or None in found else sorted(found)[0]


def load_processor(kind: Any, folder: Path, *, role: str, **settings: Any) -> Any:
    """Load a tokenizer or image processor of transformers from a local folder; code in the folder is never run.

    Args:
        kind: the class with `from_pretrained`, such as `AutoTokenizer`.
        folder: its files.
        role: what the folder is to be, for messages.
        settings: further arguments of `from_pretrained`.

    Raises:
        ModelError: if it cannot be loaded, or the folder asks for its own code.
    """
    return _load_processor(kind, folder, role, "a folder that transformers saved, with its configuration", **settings)


def load_tokenizer(kind: Any, folder: Path, *, role: str) -> Any:
    """Load a tokenizer of transformers as `load_processor` does; one that knows no words is refused.

    Without the files of its vocabulary, a tokenizer loads all the same, and every text becomes the same unknown tokens.

    Args:
        kind: the class with `from_pretrained`, such as `AutoTokenizer`.
        folder: its files.
        role: what the folder is to be, for messages.

    Raises:
        ModelError: if it cannot be loaded, the folder asks for its own code, or there is no vocabulary in it.
    """
    tokenizer = _load_processor(kind, folder, role, _TOKENIZER_FILES)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    vocabulary = tokenizer.get_vocab()
    if not any(_is_word(token) for token in vocabulary if token not in special):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ModelError(
            f"{folder}: cannot be loaded as {role}: no vocabulary, only {len(vocabulary)} special tokens;"
            f" every word would be unknown\n  found: {found}\n  expected: {_TOKENIZER_FILES}"
        )
    return tokenizer


def _load_processor(kind: Any, folder: Path, role: str, expected: str, **settings: Any) -> Any:
    _check_folder(folder, role)
    try:
        with quiet_libraries():
            found = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except Exception as error:  # the tokenizers library raises nothing more exact for a damaged file
        raise unusable(folder, role, reason(error), expected=expected) from None
    # Pipelines tokenize a prompt whole, too, to see what they cut; what is cut is counted, so a warning says nothing.
    warned = getattr(found, "deprecation_warnings", None)
    if isinstance(warned, dict):
        warned[_TOO_LONG] = True
    return found


def _is_word(token: str) -> bool:
    return _SPECIAL_NAME.fullmatch(token) is None and any(character.isalnum() for character in token)


def hub_folder(
    name: str, *, patterns: Sequence[str] = _DOWNLOADED, needs_revision: bool = True, folders: str = "a folder"
) -> Path | None:
    """Local snapshot of a hub repository, downloaded if necessary; None for a name that is no hub id.

    Args:
        name: `owner/name@revision`; the revision is a commit, or a tag or branch, which may come to mean another one.
        patterns: names of the files to download; by default settings, safetensors and vocabularies at the top.
        needs_revision: whether `owner/name` is no hub id. Results that name a repository alone cannot be reproduced,
            unless the commit is recorded beside them.
        folders: what else the name may be, for messages.

    Raises:
        ModelError: if there is no such repository or revision, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _HUB_ID.fullmatch(name)
    if match is None or (needs_revision and match["revision"] is None):
        return None
    try:
        return Path(snapshot_download(match["repository"], revision=match["revision"], allow_patterns=list(patterns)))
    except GatedRepoError:
        raise ModelError(
            f"{name}: a gated repository, and this login has no access to it\n"
            "  accept its terms on its page of the Hugging Face Hub, then log in with: hf auth login"
        ) from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = "@revision" if needs_revision else "[@revision]"
        raise ModelError(
            f"{name}: no such folder, and cannot be downloaded from the hub ({in_words(error)})\n"
            f"  expected: {folders}, or a hub id owner/name{at} that can be reached"
        ) from None


def check_files(folder: Path) -> None:
    """Refuse a folder in which the libraries would open what is no file, or settings that no model has the length of.

    Raises:
        ModelError: naming the first such file.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in MODEL_SUFFIXES:
            continue
        if not path.is_file():
            raise ModelError(f"{path}: {what_it_is(path)}\n  expected: a file of a model, as it was published")
        if path.suffix == ".json" and (size := path.stat().st_size) > LONGEST_JSON:
            raise ModelError(
                f"{path}: {size:,} bytes of settings\n  expected: at most {LONGEST_JSON:,}; the largest published"
                " vocabularies have a tenth of that"
            )


def _check_folder(folder: Path, role: str) -> None:
    """Refuse what is no folder (the libraries would look for it at a hub), holds no settings, or asks for its own code.

    Raises:
        ModelError: naming the file.
    """
    if not folder.is_dir():
        raise unusable(folder, role, "no such folder")
    check_files(folder)
    for path in sorted(folder.glob("*config.json")):
        refuse_own_code(path)


def refuse_own_code(path: Path) -> None:
    """Refuse settings that ask for code of their own, or are none.

    Args:
        path: a `config.json` or the like; one that cannot be read is left to the library, which says it better.

    Raises:
        ModelError: naming the file.
    """
    settings = _settings(path)
    if not isinstance(settings, dict):
        # The libraries would take a string for the name of another repository, and look for that.
        raise ModelError(
            f"{path}: not a configuration but {_KINDS.get(type(settings), 'a number')}\n"
            "  expected: a JSON object, as the model was published with"
        )
    if (kernel := _kernel(settings)) is not None:
        raise ModelError(
            f"{path}: asks for code from the hub (attn_implementation {kernel!r}), which cxrsynth never runs\n"
            "  expected: attention that transformers implements; remove attn_implementation in a copy of the folder"
        )
    if settings.get("auto_map"):
        raise ModelError(
            f"{path}: asks for Python code of its own (auto_map), which cxrsynth never runs\n"
            "  expected: a model that transformers implements; if it does, remove auto_map in a copy of the folder"
        )


def _kernel(value: object, *, of_attention: bool = False) -> str | None:
    """The repository that settings take an implementation of attention from; None where they name none."""
    if isinstance(value, str):
        return value if of_attention and "/" in value else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (_kernel(one, of_attention=of_attention or str(name).endswith(_ATTENTION)) for name, one in items)
    return next((one for one in found if one is not None), None)


def _settings(config: Path) -> object:
    try:
        return read_json(config)
    except OSError:
        return {}  # the library says so better
    except ValueError as error:
        raise ModelError(
            f"{config}: no JSON ({error})\n  expected: a JSON object, as the model was published with"
        ) from None


def reason(error: Exception) -> str:
    """What a library says is wrong, in one line and without what only its own caller could use."""
    text = str(error).strip()
    if sizes := _SIZE_MISMATCH.findall(text):
        name, found, expected = sizes[0]
        return (
            f"{len(sizes)} tensors have another shape than the network's, such as {name}: {found}, expected {expected}"
        )
    if isinstance(error, KeyError):
        return f"{text} is missing"
    if isinstance(error, _WRONG_TYPE):
        text = " ".join(text.split())  # the field on one line, what is wrong with it on the next
    # diffusers goes on to advise arguments that the user cannot give.
    text = in_one_line(text.partition(" If you want to instead")[0])
    if isinstance(error, (TypeError, AttributeError, IndexError)):  # these speak of the library's code, not of a file
        return f"its files are damaged, or of another kind ({text or 'no reason is given'})"
    return text or in_words(error)


def read_settings(file: Path, *, expected: str) -> dict[str, Any]:
    """Content of a `config.json` or the like.

    Raises:
        ModelError: if it cannot be read, or is no JSON object; `expected` says what should be there.
    """
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as settings: {in_words(error)}\n  expected: {expected}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: cannot be read as settings: no JSON object\n  expected: {expected}")
    return found


def unusable(folder: Path, role: str, problem: object, *, expected: str = _FOLDER_FILES) -> ModelError:
    """The error for a folder that cannot be loaded as what it is to be."""
    return ModelError(f"{folder}: cannot be loaded as {role}: {problem}\n  expected: {expected}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own account of loading from the user: what matters of it is checked, and said better."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft", "presidio-analyzer")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
