"""Whether a refresh may be published: limits on its input and output, and an audit of its rows.

Nothing here reads a file: every function judges numbers, arrays and tables that it is given, and
returns findings, those within their limits included.
"""

from batchnorm_tool.gate.audit import AuditFacts, RowAudit, audit
from batchnorm_tool.gate.findings import Finding, broken, passed, refusal_text
from batchnorm_tool.gate.input_limits import RowChanges, evaluate_input
from batchnorm_tool.gate.output_limits import BadCounts, Vectors, evaluate_output
from batchnorm_tool.job.refresh_sections import InputGate, OutputGate

__all__ = [
    "AuditFacts",
    "BadCounts",
    "Finding",
    "InputGate",
    "OutputGate",
    "RowAudit",
    "RowChanges",
    "Vectors",
    "audit",
    "broken",
    "evaluate_input",
    "evaluate_output",
    "passed",
    "refusal_text",
]
