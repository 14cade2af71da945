"""Fewer bits and fewer trained weights."""

from hadamard.compression.lora_limits import HeadNorms, NormReport, head_norms, norm_report
from hadamard.compression.polynomial_attention import poly_attention, register_attention

__all__ = ["HeadNorms", "NormReport", "head_norms", "norm_report", "poly_attention", "register_attention"]
