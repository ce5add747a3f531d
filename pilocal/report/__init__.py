"""The report: one page that shows what a run has proved, from the files that it left."""

from pilocal.report.write import write_report

__all__ = ["write_report"]
