"""What stands in an adapter's safetensors file, read without the library that trained it."""

import hashlib
import re
from pathlib import Path
from typing import Any, BinaryIO

from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.escaping import shortened
from lora_ops.hashing import canonical, sha256_file
from lora_ops.paths import ADAPTER_FILES
from lora_ops.small_files import parse_json

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
"""The name of a LoRA matrix of a linear layer, as PEFT saves it."""
# Of each floating type: its unsigned integer, and the bits of its exponent; all of them set is NaN or infinite.
EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
# What a damaged header raises; a deeply nested one exhausts the parser's stack.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def adapter_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of the two files of an adapter, by name.

    Raises:
        LoraOpsError: one is missing or can't be read.
    """
    try:
        return {name: sha256_file(folder / name) for name in ADAPTER_FILES}
    except OSError as error:
        raise LoraOpsError(f"The adapter in {folder} can't be read ({disk_reason(error)}).") from error


def weights_digest(path: Path) -> str:
    """Return the SHA-256 over the tensors of a safetensors file: names, types, shapes and bytes.

    Metadata and the order in the file don't count, so the same weights saved again have the same digest.

    Raises:
        LoraOpsError: the header can't be read, or a tensor is outside the file.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start, header = _read_header(file, size)
            unread = size - start
            for name in sorted(header):
                tensor = header[name]
                first, last = _place(name, tensor, start, size)
                unread -= last - first
                if unread < 0:  # tensors that share bytes would be read as often as the header says
                    raise ValueError("its tensors overlap")
                file.seek(first)
                digest.update(canonical([name, tensor["dtype"], tensor["shape"]]).encode())
                digest.update(file.read(last - first))
    except UNREADABLE as error:
        raise LoraOpsError(f"{path} is not a safetensors file ({error}): package it again.") from error
    return digest.hexdigest()


def non_finite_tensors(path: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file that hold NaN or infinity.

    Raises:
        LoraOpsError: the header can't be read, or a tensor is outside the file.
    """
    import numpy as np

    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start, header = _read_header(file, size)
        found = []
        for name, tensor in header.items():
            if tensor["dtype"] not in EXPONENTS:
                continue
            kind, exponent = EXPONENTS[tensor["dtype"]]
            first, last = _place(name, tensor, start, size)
            if first == last:
                continue
            count = (last - first) // np.dtype(kind).itemsize
            bits = np.memmap(path, dtype=kind, mode="r", offset=first, shape=(count,))
            if ((bits & exponent) == exponent).any():
                found.append(name)
    except UNREADABLE as error:
        raise LoraOpsError(f"{path} is not a safetensors file ({error}): package it again.") from error
    return found


def largest_dtype(path: Path) -> str | None:
    """Return the type of the largest tensor of a safetensors file; None where its header can't be read."""
    try:
        with path.open("rb") as file:
            _, header = _read_header(file, path.stat().st_size)
        largest = max(header.values(), key=lambda one: one["data_offsets"][1] - one["data_offsets"][0])
        return str(largest["dtype"])
    except (*UNREADABLE, IndexError):
        return None


def require_lora(path: Path) -> None:
    """Refuse a file that holds other things than LoRA matrices, or a type that its values don't need.

    A closed adapter is known by the digest of its tensors. A tensor that no engine applies, or the same values
    in another type, would give the same answers another digest.

    Raises:
        LoraOpsError: a tensor is no LoRA matrix; bytes belong to none or two; the types are several, or
            not float32, float16 or bfloat16; a smaller type holds every value as it is; or the header can't be
            read.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start, header = _read_header(file, size)
        shapes = {name: tensor["shape"] for name, tensor in header.items()}
        types = {str(tensor["dtype"]) for tensor in header.values()}
        places = [_place(name, tensor, start, size) for name, tensor in header.items()]
    except UNREADABLE as error:
        raise LoraOpsError(f"{path} is not a safetensors file ({error}): package it again.") from error
    if sum(last - first for first, last in places) != size - start:
        raise LoraOpsError(
            f"{path.name} holds bytes that no tensor has, or one tensor twice, so no engine loads it: save the "
            "adapter again."
        )
    other = [one for one in sorted(shapes) if not KEY.fullmatch(one) or len(shapes[one]) != 2]
    other += [name for name, (first, last) in zip(header, places, strict=True) if first == last]
    if other:
        raise LoraOpsError(
            f"{path.name} holds '{shortened(other[0])}', which is not a LoRA matrix of a linear layer: save "
            "the adapter without it."
        )
    if len(types) != 1 or not types <= {"F32", "F16", "BF16"}:
        raise LoraOpsError(
            f"{path.name} holds tensors of type {', '.join(sorted(types)) or 'none'}: save all of them as "
            "float32, float16 or bfloat16."
        )
    [saved_as] = types
    smaller = _smaller_type(path, saved_as, places)
    if smaller:
        raise LoraOpsError(
            f"{path.name} holds values of {smaller}, saved as {saved_as}: save them as {smaller}, so that the "
            "same weights are known as the same."
        )


def _smaller_type(path: Path, saved_as: str, places: list[tuple[int, int]]) -> str | None:
    """Return the type that holds every value of a file as it is and is less precise, or None without one."""
    import numpy as np

    fits = {"F32": ["bfloat16", "float16"], "F16": ["bfloat16"], "BF16": []}[saved_as]
    kind = "<f4" if saved_as == "F32" else "<f2"
    for first, last in places:
        if not fits:
            break
        count = (last - first) // np.dtype(kind).itemsize
        values = np.memmap(path, dtype=kind, mode="r", offset=first, shape=(count,))
        wide = np.asarray(values, dtype="<f4")
        if "bfloat16" in fits and (wide.view("<u4") & 0xFFFF).any():
            fits.remove("bfloat16")
        with np.errstate(over="ignore"):
            if "float16" in fits and (wide.astype("<f2").astype("<f4") != wide).any():
                fits.remove("float16")
    return fits[0] if fits else None


def _read_header(file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Return where the tensors begin in a file of `size` bytes, and what its header says of each."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:  # a damaged length would ask for all memory
        raise ValueError("its header is longer than the file")
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    return 8 + length, header


def _place(name: str, tensor: dict[str, Any], start: int, size: int) -> tuple[int, int]:
    """Return where a tensor begins and ends in its file; a damaged place would ask for all memory."""
    first, last = (start + offset for offset in tensor["data_offsets"])
    if not start <= first <= last <= size:
        raise ValueError(f"'{name}' is outside the file")
    return first, last


def require_finite(path: Path) -> None:
    """Refuse an adapter that would answer with nothing or with NaN.

    Raises:
        LoraOpsError: a matrix holds NaN or infinity; the text names its modules.
    """
    names = non_finite_tensors(path)
    if names:
        modules = list(
            dict.fromkeys(name.split(".lora_")[0].removeprefix("base_model.model.") for name in names)
        )
        more = f" and {len(modules) - 3} more modules" if len(modules) > 3 else ""
        raise LoraOpsError(
            f"{path.name} has NaN or infinite values in {', '.join(modules[:3])}{more}: its training diverged; "
            "train it again with a lower train.learning_rate or train.max_grad_norm."
        )
