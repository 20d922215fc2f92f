"""The output format "sarif": SARIF 2.1.0, for code scanning.

Code, name and direction identify a result; its line does not. So a result stays the same while the
file around it changes. Paths are relative to the repository's root.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from typing import Any
from urllib.parse import quote

from unitify.capture.source import Frame
from unitify.check.finding import Finding
from unitify.check.outcome import Outcome
from unitify.diagnostics import all_diagnostics
from unitify.version import __version__

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "note": "note"}
#: Name and version of the fingerprints.
_FINGERPRINT = "unitifyKey/v1"


def as_sarif(outcome: Outcome) -> dict[str, Any]:
    """One run with every finding. Known findings are suppressed results."""
    found = [*outcome.findings, *outcome.known]
    codes = sorted({finding.code for finding in found})
    known = {finding.key for finding in outcome.known}
    run = {
        "tool": {
            "driver": {
                "name": "unitify",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(code) for code in codes],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The repository's root."}}},
        "results": [_result(f, codes.index(f.code), f.key in known) for f in found],
        "invocations": [
            {
                "executionSuccessful": True,
                "exitCode": 0 if outcome.is_clean else 1,
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": note}} for note in outcome.notes
                ],
            }
        ],
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def fingerprint(finding: Finding) -> str:
    """Identifies a finding wherever its line has moved."""
    return hashlib.sha256("\0".join(finding.key).encode()).hexdigest()[:32]


def _rule(code: str) -> dict[str, Any]:
    found = all_diagnostics()[code]
    text = inspect.getdoc(found) or ""
    what, _, _ = text.partition("\nExample:")
    _, _, fix = text.partition("\nFix:")
    short = what.splitlines()[0]
    return {
        "id": code,
        "name": found.__name__,
        "shortDescription": {"text": short},
        "fullDescription": {"text": _paragraph(what)},
        "help": {"text": _paragraph(fix), "markdown": f"**Fix.** {_paragraph(fix)}"},
        "properties": {"tags": ["numerics"]},
    }


def _paragraph(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def _result(finding: Finding, rule: int, is_known: bool) -> dict[str, Any]:
    text = f"{finding.message}. {finding.fix}."
    if finding.derivation:
        text += " " + "; ".join(finding.derivation)
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [_location(finding)],
        "partialFingerprints": {_FINGERPRINT: fingerprint(finding)},
        "baselineState": "unchanged" if is_known else "new",
        "properties": {"direction": finding.direction, "value": finding.value},
    }
    if is_known:
        result["suppressions"] = [{"kind": "external", "justification": "in the baseline"}]
    if finding.cause_source is not None and finding.cause_source.file:
        result["relatedLocations"] = [
            {
                "physicalLocation": _physical(finding.cause_source),
                "message": {"text": f"it begins at {finding.cause}"},
            }
        ]
    return result


def _location(finding: Finding) -> dict[str, Any]:
    named = {"fullyQualifiedName": finding.name, "kind": "member"}
    location: dict[str, Any] = {"logicalLocations": [named]}
    if finding.source.file:
        location["physicalLocation"] = _physical(finding.source)
    return location


def _physical(source: Frame) -> dict[str, Any]:
    return {
        "artifactLocation": {"uri": quote(source.file), "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": max(source.line, 1)},
    }
