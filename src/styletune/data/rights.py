"""The rights of a set: what speaks against training or publishing, and the published summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from styletune.data.findings import Finding, Severity, agree, count_images, finding
from styletune.data.inspection.opt_out import PERMITTING, prohibits_training
from styletune.data.licenses import RESTRICTIONS, current_id, license_problem, restrictions
from styletune.data.sources.items import RIGHTS_COLUMNS, Item
from styletune.runs.documents import DeclaredRights, OptOutOverride, RightsSummary

_DECLARE = "declare them in dataset.toml, or as metadata columns for single images"
_ASK = "ask the holders for a suitable license, or remove these images"
LICENSE_FIX = "use an id from spdx.org/licenses, or LicenseRef-<name> for your own terms"


def rights_findings(
    items: Sequence[Item],
    opt_outs: Mapping[str, str],
    *,
    require: bool,
    override: str | None,
) -> list[Finding]:
    """Everything in the declared rights and the files' opt-outs that speaks against training.

    Args:
        items: the set.
        opt_outs: ``opt_out_term`` by file name; files without a term may be left out.
        require: undeclared rights are errors, not warnings.
        override: why images may be used although their files prohibit it, in words that are
            recorded; None if nobody decided that.
    """
    findings = _missing(items, "error" if require else "warning")
    for text, files in _by_license(items).items():
        findings += _license_findings(text, files)
    return findings + _opt_out_findings(opt_outs, override)


def _missing(items: Sequence[Item], severity: Severity) -> list[Finding]:
    lacking = {
        column: [item.file_name for item in items if column in _undeclared(item)]
        for column in RIGHTS_COLUMNS
    }
    counts = [f"{column} of {len(files)}" for column, files in lacking.items() if files]
    if not counts:
        return []
    files = [item.file_name for item in items if _undeclared(item)]
    state = agree(len(files), "lack rights")
    message = f"{len(files)} of {len(items)} images {state}; undeclared: {_and(counts)}"
    return [finding("missing-rights", files, message, _DECLARE, severity)]


def _undeclared(item: Item) -> list[str]:
    return [column for column in RIGHTS_COLUMNS if not getattr(item.rights, column).strip()]


def _by_license(items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    """The files of each declared license, licenses sorted."""
    files: dict[str, list[str]] = {}
    for item in items:
        if item.rights.license.strip():
            files.setdefault(item.rights.license, []).append(item.file_name)
    return {text: tuple(names) for text, names in sorted(files.items())}


def _license_findings(text: str, files: tuple[str, ...]) -> list[Finding]:
    problem = license_problem(text)
    if problem:
        return [finding("bad-license", files, problem, LICENSE_FIX)]
    findings = []
    current = current_id(text)
    if _ids(current) != _ids(text):
        message = f"{text} is an outdated form of {current}"
        findings.append(finding("bad-license", files, message, f"write {current}", "warning"))
    for kind in sorted(restrictions(text)):
        message = f"{_under(files, text)}, which {RESTRICTIONS[kind]}"
        findings.append(finding("restricted-license", files, message, _ASK))
    return findings


def _ids(expression: str) -> list[str]:
    return re.findall(r"[^\s()]+", expression.casefold())


def _opt_out_findings(opt_outs: Mapping[str, str], override: str | None) -> list[Finding]:
    findings = []
    prohibiting = {name: term for name, term in opt_outs.items() if prohibits_training(term)}
    if prohibiting:
        terms = _counted(prohibiting.values())
        reason = (override or "").strip()
        message = (
            f"the XMP metadata of {count_images(len(prohibiting))} prohibits training: {terms}"
        )
        fix = "remove them, or ask their holders and record the permission as an override"
        if reason:
            message += f'; used anyway because of the recorded override "{reason}"'
            fix = "keep the permission: the override is published with the adapter"
        severity: Severity = "warning" if reason else "error"
        findings.append(finding("opt-out", sorted(prohibiting), message, fix, severity))
    unclear = {
        name: term
        for name, term in opt_outs.items()
        if term and name not in prohibiting and term not in PERMITTING
    }
    if unclear:
        message = (
            f"the XMP metadata of {count_images(len(unclear))} does not say clearly whether "
            f"training is prohibited: {_counted(unclear.values())}"
        )
        fix = "ask their holders, and save them with readable XMP metadata"
        findings.append(finding("opt-out", sorted(unclear), message, fix, "warning"))
    return findings


def _under(files: Sequence[str], license_id: str) -> str:
    return f"{count_images(len(files))} {agree(len(files), f'are under {license_id}')}"


def _counted(terms: Iterable[str]) -> str:
    return ", ".join(f"{term} ({n})" for term, n in sorted(Counter(terms).items()))


def _and(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def publishable_problem(items: Sequence[Item]) -> Finding | None:
    """Why an adapter of these images must not be published: the first reason, or None.

    Publishing requires license, holder, consent and source of every image, and licenses that are
    known and allow derivatives to be shared.
    """
    errors = _missing(items, "error")
    for text, files in _by_license(items).items():
        errors += [f for f in _license_findings(text, files) if f.severity == "error"]
    if errors:
        return errors[0]
    prohibiting = {t: f for t, f in _by_license(items).items() if "ND" in restrictions(t)}
    if not prohibiting:
        return None
    listed = "; ".join(_under(files, text) for text, files in prohibiting.items())
    names = [name for files in prohibiting.values() for name in files]
    message = f"{listed}, which {RESTRICTIONS['ND']}"
    return finding("restricted-license", names, message, _ASK, "error")


def rights_summary(
    items: Sequence[Item],
    *,
    opt_outs: Mapping[str, str],
    override: str | None,
    lowered: Sequence[Finding] = (),
) -> RightsSummary:
    """The images' rights as they travel with the adapter.

    No file names and no captions: they may reveal more than the holders want.

    Args:
        items: the set.
        opt_outs: as in ``rights_findings``.
        override: as in ``rights_findings``.
        lowered: findings that are errors by default and were lowered by the recipe.
    """
    combinations = Counter(item.rights for item in items)
    declared = [DeclaredRights(**asdict(rights), images=n) for rights, n in combinations.items()]
    declared.sort(key=lambda entry: (-entry.images, *(getattr(entry, c) for c in RIGHTS_COLUMNS)))
    terms = Counter(term for term in opt_outs.values() if prohibits_training(term))
    files = {
        code: {n for f in lowered if f.code == code for n in f.files}
        for code in sorted({f.code for f in lowered})
    }
    return RightsSummary(
        images=len(items),
        declared=tuple(declared),
        opt_out=OptOutOverride(override=override or "", terms=dict(sorted(terms.items())))
        if terms
        else None,
        lowered={code: len(names) for code, names in files.items()},
    )
