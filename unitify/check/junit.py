"""The output format "junit": one test case for each tensor, grouped by module."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from unitify.check.finding import Finding
from unitify.check.outcome import Outcome

#: Characters that XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 65534, 65535), "�")


def as_junit(outcome: Outcome) -> str:
    """One case for each judged tensor. Findings fail; known findings are skipped."""
    held: dict[tuple[str, str], list[Finding]] = {}
    for finding in (*outcome.findings, *outcome.known):
        held.setdefault((finding.name, finding.direction), []).append(finding)
    known = {finding.key for finding in outcome.known}
    modules = {(case.name, case.direction): case.module for case in outcome.cases}
    for findings in held.values():
        for finding in findings:
            modules.setdefault((finding.name, finding.direction), finding.module)
    suite = Element("testsuite", name=f"unitify check {_clean(outcome.target)}")
    for (name, direction), module in modules.items():
        title = _clean(f"{name} {direction}".strip())
        case = SubElement(suite, "testcase", name=title, classname=_clean(module) or "(root)")
        for finding in held.get((name, direction), ()):
            _add_result(case, finding, finding.key in known)
    counts = {
        "tests": len(suite),
        "failures": sum(case.find("failure") is not None for case in suite),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in suite),
        "time": round(sum(outcome.seconds.values()), 3),
    }
    suite.attrib |= {name: str(count) for name, count in counts.items()}
    document = Element("testsuites", {**suite.attrib, "name": "unitify check"})
    document.append(suite)
    return ElementTree.tostring(document, encoding="unicode", xml_declaration=True)


def _add_result(case: Element, finding: Finding, is_known: bool) -> None:
    message = _clean(finding.message)
    if is_known:
        SubElement(case, "skipped", message=f"known: {message}", type=finding.code)
        return
    source = f"{finding.source}\n" if finding.source.file else ""
    derivation = "\n".join(finding.derivation)
    failure = SubElement(case, "failure", message=message, type=finding.code)
    failure.text = _clean(f"{source}{finding.message}\n{finding.fix}\n{derivation}")


def _clean(text: str) -> str:
    return text.translate(_FORBIDDEN)
