"""keys.json: the keys, their models and their limits.

The whole format (``…`` marks what may be omitted)::

    {
      "keys": [                               one entry per key and model, or per key
        {
          "key_id": "gemini-key-01",          name of the key; its secret is in API_KEY_gemini_key_01
          "provider": "gemini",             … name of the provider adapter; default "gemini"
          "project": "research",            … the provider's unit of billing; its keys share their quotas;
                                              default: the key_id
          "active": true,                   … false: shown in statuses, not used; default true
          "model_name": "gemini-3.5-flash-lite",
          "tags": {                         …
            "workload": "light",            … one of the workloads; default: the model's
            "priority": 1,                  … whole number, 0 or more; lower is tried first; default 1
            "weight": 1.0                   … above 0; share of traffic (weighted strategy); default 1.0
          },
          "limits": {                       … or the same fields beside model_name
            "rpm": 15,                      … requests per minute
            "tpm": "learn",                 … input tokens per minute; "learn": by what the provider refuses
            "rpd": 1500,                    … requests per day
            "tpd": null                     … input tokens per day; null is unlimited
          }                                   "limits": "learn" is short for "learn" in the first three
        },
        {
          "key_id": "gemini-key-02",
          "models": [                         instead of model_name: several models on one key
            "gemini-3.8-flash",               a name, or an object:
            {"model_name": "gemini-pro-latest", "tags": {…}, "limits": {…}}
          ]
        }
      ],
      "models": {                           … defaults for a model on every key
        "gemini-3.8-flash": {                 its name; models/ before a name means nothing, here and above
          "limits": {…},                    … as above; or the same fields here
          "workload": "medium",             … the workload of its deployments
          "refill": "rolling",              … or "steady", for a provider that smooths its limits
          "burst": 1,                       … with "steady" only: most requests at once, 1 to rpm
          "methods": ["generateContent"]    … what it can be asked for; default: what its name says
        }
      },
      "workloads": ["light", "medium", "heavy"]   … from lightest to heaviest
    }

The limit of each metric comes from the first of these that states it: the item of the entry's ``models``, the
entry, the top-level ``models``, the built-in table. A number is a cap: what is learnt from refusals may be
less, never more. Where ``"learn"`` overrides a number, that is where learning starts. A metric that none of
them states is unlimited; of a model of which none is stated, the first three are learnt. Each tag comes from
the item of ``models``, then from the entry. Any other field is an error, and so is a secret.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import attrs

from llm_router.config.environment import secret_name
from llm_router.config.fields import Fields, describe, is_name
from llm_router.config.findings import Report
from llm_router.config.jsonfile import read_json
from llm_router.config.models import LEARN, LEARNT_METRICS, Limit, Limits, Model
from llm_router.config.redaction import is_placeholder
from llm_router.domain.deployment import plain_model
from llm_router.domain.methods import METHODS
from llm_router.domain.quota import Metric, Refill

__all__ = ["Entry", "KeyFile", "read_keyfile"]

_WORKLOADS = ("light", "medium", "heavy")
_MISSING = "make it with `llm-router init`, or copy keys.json.example to it and enter your own keys"


@attrs.frozen
class Entry:
    """One deployment as the file states it.

    Attributes:
        file: The path of the file.
        label: The place in the file, such as ``keys[3] (gemini-key-04)``.
        key_id: The name of the key.
        provider: The name of the provider adapter.
        project: The project that the provider bills; by default the ``key_id``.
        model: The provider's name of the model.
        active: Whether the deployment is used.
        workload: The workload, or None if the entry states none.
        priority: Lower numbers are tried first.
        weight: The share of traffic under a weighted strategy.
        limits: The limits that the entry itself states.
        states_project: Whether the entry names the project.
    """

    file: str
    label: str
    key_id: str
    provider: str
    project: str
    model: str
    active: bool
    workload: str | None
    priority: int
    weight: float
    limits: Limits
    states_project: bool = True

    @property
    def where(self) -> str:
        """The file and the place in it, as for :class:`~llm_router.config.findings.Finding`."""
        return f"{self.file}: {self.label}"


@attrs.frozen
class KeyFile:
    """A keys file as it is written, before defaults and secrets are added.

    Attributes:
        entries: The deployments, in order.
        models: The defaults for each model that the file lists.
        workloads: The workloads, from lightest to heaviest.
    """

    entries: tuple[Entry, ...]
    models: Mapping[str, Model]
    workloads: tuple[str, ...]


@attrs.frozen
class _Tags:
    workload: str | None = None
    priority: int | None = None
    weight: float | None = None

    def over(self, other: _Tags) -> _Tags:
        """Return these tags, completed by those of ``other``."""
        mine = attrs.asdict(self, filter=lambda _, value: value is not None)
        return attrs.evolve(other, **mine)


def read_keyfile(path: Path, report: Report, providers: Collection[str]) -> KeyFile | None:
    """Read a keys file.

    Args:
        path: The file.
        report: Where problems are reported. If it contains an error, the result must not be used.
        providers: The names of the known providers.

    Returns:
        The readable part of the file, or None if it is not a JSON object.
    """
    raw = read_json(path, report, _MISSING)
    if raw is None:
        return None
    top = Fields(raw, str(path), report)
    workloads = _read_workloads(top)
    models = dict(_read_models(top, workloads))
    entries = tuple(_read_entries(top, workloads, providers))
    top.close()
    return KeyFile(entries, models, workloads)


def _read_workloads(top: Fields) -> tuple[str, ...]:
    found: list[str] = []
    for place, item in enumerate(top.items("workloads", nested=False) or ()):
        name = f"workloads[{place}]"
        if not isinstance(item, str) or not item.strip() or item != item.strip() or not is_name(item):
            top.error(name, f"must be a name without spaces around it; found {describe(item)}")
        elif item in found:
            top.error(name, f"{item!r} appears twice: keep one")
        else:
            found.append(item)
    return tuple(found) or _WORKLOADS


def _read_models(top: Fields, workloads: tuple[str, ...]) -> Iterator[tuple[str, Model]]:
    models = top.child("models")
    seen: set[str] = set()
    for written, fields in models.members() if models else ():
        name = plain_model(written)
        if is_placeholder(name) or not name.strip():
            top.error("models", f"{written!r} is a placeholder: write the name of a model")
        if name != written:
            words = f"models/ before a name means nothing: write {name!r}"
            top.report.advise(top.place(f"models.{written}"), words)
        if name in seen:
            top.error(f"models.{written}", f"is the same model as {name!r}: keep one, without models/")
        seen.add(name)
        limits = _read_limits(fields)
        workload = fields.choice("workload", workloads)
        refill = fields.choice("refill", (Refill.ROLLING.value, Refill.STEADY.value))
        burst = fields.whole("burst", least=1)
        rpm = limits.get(Metric.RPM)
        rpm = None if rpm == LEARN else rpm
        if burst is not None and refill != Refill.STEADY.value:
            fields.error("burst", 'needs a steady refill: add "refill": "steady", or remove the burst')
        elif burst is not None and rpm is not None and burst > max(rpm, 1):
            fields.error("burst", f"must be between 1 and rpm, which is {rpm}; found {burst}: lower it")
        methods = _read_methods(fields)
        fields.close()
        yield name, Model(limits, workload, Refill(refill or Refill.ROLLING), burst, methods)


def _read_methods(fields: Fields) -> frozenset[str] | None:
    found = fields.items("methods", nested=False)
    for place, item in enumerate(found or ()):
        if item not in METHODS:
            fields.refuse_item(f"methods[{place}]", item, f"one of {', '.join(sorted(METHODS))}")
    return None if found is None else frozenset(map(str, found))


def _read_limits(fields: Fields) -> dict[Metric, Limit]:
    limits = {metric: fields.limit(metric.value) for metric in Metric if metric.value in fields}
    if fields.says("limits", LEARN):
        return {**dict.fromkeys(LEARNT_METRICS, LEARN), **limits}
    nested = fields.child("limits", word=LEARN)
    if nested is None:
        return limits
    for metric in Metric:
        if metric.value not in nested:
            continue
        if metric in limits:
            fields.error(metric.value, "appears both in limits and beside it: keep one")
        limits[metric] = nested.limit(metric.value)
    nested.close()
    return limits


def _read_tags(fields: Fields, workloads: tuple[str, ...]) -> _Tags:
    for name in ("workload", "priority", "weight"):
        fields.hint(name, 'put it into "tags"')
    tags = fields.child("tags")
    if tags is None:
        return _Tags()
    read = _Tags(tags.choice("workload", workloads), tags.whole("priority"), tags.positive("weight"))
    tags.close()
    return read


def _read_entries(top: Fields, workloads: tuple[str, ...], providers: Collection[str]) -> Iterator[Entry]:
    report, file = top.report, top.where
    if "keys" not in top:
        top.error("keys", "is missing: add a list of keys, as in keys.json.example")
    for place, item in enumerate(top.items("keys") or ()):
        label = f"keys[{place}]"
        if not isinstance(item, dict):
            top.refuse_item(label, item, "an object in braces")
            continue
        key_id = item.get("key_id")
        fields = Fields(item, f"{file}: {label}", report)
        if isinstance(key_id, str) and not report.redactor.is_secret(key_id):
            label = f"{label} ({key_id})"
            fields = Fields(item, f"{file}: {label}", report, variable=secret_name(key_id))
        yield from _read_entry(fields, file, label, workloads, providers)
        fields.close()


def _read_entry(
    fields: Fields, file: str, label: str, workloads: tuple[str, ...], providers: Collection[str]
) -> Iterator[Entry]:
    key_id = fields.required_text("key_id")
    provider = fields.choice("provider", providers)
    project = fields.text("project")
    active = fields.flag("active", default=True)
    tags, limits = _read_tags(fields, workloads), _read_limits(fields)
    for place, model, own_tags, own_limits in _read_deployed(fields, workloads):
        if key_id is None or model is None:
            continue
        chosen = own_tags.over(tags)
        yield Entry(
            file=file,
            label=f"{label}: {place}" if place else label,
            key_id=key_id,
            provider=provider or "gemini",
            project=project or key_id,
            model=model,
            active=active,
            workload=chosen.workload,
            priority=1 if chosen.priority is None else chosen.priority,
            weight=1.0 if chosen.weight is None else chosen.weight,
            limits=limits | own_limits,
            states_project=project is not None,
        )


def _read_deployed(
    fields: Fields, workloads: tuple[str, ...]
) -> Iterator[tuple[str, str | None, _Tags, dict[Metric, Limit]]]:
    """Yield place, model, tags and limits of each item of ``models``, or of ``model_name``."""
    model, items = fields.model_name("model_name"), fields.items("models")
    fields.hint("model", 'write "model_name"')
    if "model_name" in fields and "models" in fields:
        fields.error("models", "appears together with model_name: keep one of them")
    elif "model_name" not in fields and "models" not in fields:
        fields.error("model_name", "is missing: add it, or a list of models")
    elif items is None:
        yield "", model, _Tags(), {}
    for place, item in enumerate(items or ()):
        name = f"models[{place}]"
        raw = {"model_name": item} if isinstance(item, str) else item
        if not isinstance(raw, dict):
            fields.refuse_item(name, item, "the name of a model, or an object in braces")
            continue
        inner = fields.inner(raw, name)
        inner.hint("model", 'write "model_name"')
        if "model_name" not in inner:
            inner.error("model_name", "is missing: add it")
        yield name, inner.model_name("model_name"), _read_tags(inner, workloads), _read_limits(inner)
        inner.close()
