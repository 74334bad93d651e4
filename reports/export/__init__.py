"""Exporting a run to what people's dashboards read: TensorBoard, CSV, Parquet."""

from __future__ import annotations

from precscope.reports.export.writing import EXPORTERS, export_run

__all__ = ["EXPORTERS", "export_run"]
