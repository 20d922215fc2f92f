"""The output format "junit": one test case for each tensor, grouped by module."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from unitify.check.finding import Finding
from unitify.check.outcome import Outcome

#: What XML 1.0 has no way to hold, however it is escaped.
_FORBIDDEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 65534, 65535), "�")


def as_junit(outcome: Outcome) -> str:
    """Every tensor that was judged; what is found of it fails, what the baseline has is skipped."""
    suite = TestSuite(f"unitify check {_clean(outcome.target)}")
    held: dict[tuple[str, str], list[Finding]] = {}
    for finding in (*outcome.findings, *outcome.known):
        held.setdefault((finding.name, finding.direction), []).append(finding)
    known = {finding.key for finding in outcome.known}
    modules = {(case.name, case.direction): case.module for case in outcome.cases}
    for findings in held.values():
        for finding in findings:
            modules.setdefault((finding.name, finding.direction), finding.module)
    for (name, direction), module in modules.items():
        case = TestCase(_clean(f"{name} {direction}".strip()), _clean(module) or "(root)")
        case.result = [_result(f, f.key in known) for f in held.get((name, direction), ())]
        suite.add_testcase(case)
    suite.time = round(sum(outcome.seconds.values()), 3)
    document = JUnitXml("unitify check")
    document.add_testsuite(suite)
    text = document.tostring()
    return text.decode() if isinstance(text, bytes) else str(text)


def _result(finding: Finding, is_known: bool) -> Failure | Skipped | Error:
    if is_known:
        return Skipped(_clean(f"known: {finding.message}"), finding.code)
    result = Failure(_clean(finding.message), finding.code)
    place = f"{finding.place}\n" if finding.place.file else ""
    derivation = "\n".join(finding.derivation)
    result.text = _clean(f"{place}{finding.message}\n{finding.fix}\n{derivation}")
    return result


def _clean(text: str) -> str:
    return text.translate(_FORBIDDEN)
