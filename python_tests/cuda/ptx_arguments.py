"""Fills csrc/cuda/kernel_args.h, the arguments of the CUDA kernels over rows, from tensors."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from ptxsim import Device

CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # kernel_args.h
LOG2_E = 1.4426950408889634


class Logits(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("row_stride", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class Temperature(ctypes.Structure):
    _fields_ = (("inverse", ctypes.c_double), ("scale", ctypes.c_float), ("rounded", ctypes.c_double))


class Indices(ctypes.Structure):
    """A structure of csrc/operators/verify_requests.h, as are the three below."""

    _fields_ = (("data", ctypes.c_uint64), ("stride", ctypes.c_int64), ("is_int64", ctypes.c_bool))


class Column(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64), ("stride", ctypes.c_int64))


class VerifyArrays(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("requests", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("student_rows", ctypes.c_int64),
        ("teacher_rows", ctypes.c_int64),
        ("student_kind", ctypes.c_int32),
        ("draft_tokens", Indices),
        ("offsets", Indices),
        ("student_row", Indices),
        ("teacher_row", Indices),
        ("epsilon", Column),
        ("temperature", Column),
        ("accept_uniform", Column),
        ("draw_uniform", Column),
        ("tokens", ctypes.c_uint64),
        ("int64_tokens", ctypes.c_bool),
        ("emitted", ctypes.c_uint64),
        ("accepted", ctypes.c_uint64),
        ("beta", ctypes.c_uint64),
        ("kl", ctypes.c_uint64),
        ("log_probs", ctypes.c_uint64),
    )


VERDICT_WORDS = 4  # of eight bytes: RowVerdict


class Strips(ctypes.Structure):
    """The structure of csrc/cuda/launch/launch_table.h."""

    _fields_ = (("each", ctypes.c_int32), ("rest", ctypes.c_int32), ("inverse", ctypes.c_uint32))


STRIPS_PER_SECTION, SECTIONS_PER_BLOCK = 8, 2


def strips_of(chunks: int, sections: int) -> Strips:
    """Cuts a row of so many chunks and sections into strips."""
    strips = STRIPS_PER_SECTION * sections
    return Strips(*divmod(chunks, strips), -(-(1 << 24) // strips))


class KernelArgs(ctypes.Structure):
    """The structure of csrc/cuda/kernel_args.h."""

    _fields_ = (
        ("student", Logits),
        ("teacher", Logits),
        ("rows", ctypes.c_int64),
        ("vocab", ctypes.c_int32),
        ("slice_vectors", ctypes.c_int32),
        ("sections", ctypes.c_int32),
        ("strips", Strips),
        ("prefetch", ctypes.c_bool),
        ("temperature", Temperature),
        ("epsilon", ctypes.c_double),
        ("epsilon_per_row", ctypes.c_uint64),
        ("epsilon_stride", ctypes.c_int64),
        ("uniform", ctypes.c_uint64),
        ("uniform_stride", ctypes.c_int64),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "beta",
                "kl",
                "sweeps",
                "log_probs",
                "token",
                "log_prob",
                "student_log_prob",
                "teacher_log_prob",
            )
        ),
        ("verify", VerifyArrays),
        ("verdicts", ctypes.c_uint64),
    )


def address_of(device: Device, tensor: Tensor, name: str) -> int:
    """Returns the address of the first element; the tensor's whole storage is in the device's memory."""
    size = tensor.element_size()
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    kind = {8: np.int64, 4: np.float32, 2: np.uint16}[size]
    return int(device.upload(storage.numpy().view(kind), name=name)) + tensor.storage_offset() * size


def logits_of(device: Device, tensor: Tensor, name: str) -> Logits:
    """Returns the logits with the tensor's own strides and offset."""
    return Logits(address_of(device, tensor, name), tensor.stride(0), tensor.stride(1), CODES[tensor.dtype])


def indices_of(device: Device, tensor: Tensor | None, name: str) -> Indices:
    if tensor is None:
        return Indices()
    return Indices(address_of(device, tensor, name), tensor.stride(0), tensor.dtype == torch.int64)


def column_of(device: Device, tensor: Tensor, name: str) -> Column:
    return Column(address_of(device, tensor, name), tensor.stride(0))


def temperature_of(temperature: float) -> Temperature:
    found = Temperature(1.0 / temperature, LOG2_E / temperature)
    found.rounded = LOG2_E / found.scale  # which the field has rounded
    return found
