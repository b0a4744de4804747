"""Deployments made from the entries of a keys file: defaults, quotas, secrets, and conflicts of entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from llm_router.config.environment import Environment, secret_name
from llm_router.config.findings import Report
from llm_router.config.keyfile import Entry, KeyFile
from llm_router.config.models import BUILT_IN, LEARN, Model, merged, quotas
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.methods import usual_methods
from llm_router.domain.quota import Metric, Quota, Refill
from llm_router.domain.secret import Secret

__all__ = ["Assembly"]

_UNKNOWN = Model()
_GEMINI = "gemini"
_OF_VERTEX = ("publishers/", "projects/")


@attrs.frozen(eq=False, repr=False)
class Assembly:
    """The step from the entries of a keys file to deployments.

    Attributes:
        file: The keys file.
        environment: The source of the secrets.
        report: Where problems are reported. If it contains an error, the deployments must not be used.
        guard: Seconds added to the window of each quota.
        secrets_required: Whether a missing secret of a key in use is an error.
        enabled: Whether all active keys are used; if false, only the first one is.
    """

    file: KeyFile
    environment: Environment
    report: Report
    guard: float
    secrets_required: bool
    enabled: bool

    def deployments(self) -> tuple[tuple[Deployment, ...], tuple[Deployment, ...]]:
        """Return the deployments to use, and the others; both in the order of the file."""
        self._check_keys()
        self._check_names()
        self._check_models()
        used = self._used()
        keys = self._keys({entry.key_id for entry in used})
        made = {id(entry): self._deployment(entry, keys[entry.key_id]) for entry in self.file.entries}
        self._check_quotas([(entry, made[id(entry)].quotas) for entry in self.file.entries])
        self._check_refills(made.values())
        chosen = {id(entry) for entry in used}
        return (
            tuple(deployment for name, deployment in made.items() if name in chosen),
            tuple(deployment for name, deployment in made.items() if name not in chosen),
        )

    def _used(self) -> list[Entry]:
        active = [entry for entry in self.file.entries if entry.active]
        if self.enabled or not active:
            return active
        return [entry for entry in active if entry.key_id == active[0].key_id]

    def _check_keys(self) -> None:
        """Reject duplicate deployments and conflicting entries for one key."""
        keys: dict[str, Entry] = {}
        variables: dict[str, Entry] = {}
        deployments: dict[tuple[str, str], Entry] = {}
        for entry in self.file.entries:
            first = keys.setdefault(entry.key_id, entry)
            for name, mine, other in (
                ("provider", entry.provider, first.provider),
                ("project", entry.project, first.project),
            ):
                if mine != other:
                    self._error(
                        entry,
                        f"{name} {mine!r} differs from {other!r} in {first.label}: a key has one {name}, so "
                        "use the same in both entries",
                    )
            variable = secret_name(entry.key_id)
            other_key = variables.setdefault(variable, entry)
            if other_key.key_id != entry.key_id:
                self._error(
                    entry,
                    f"key_id: the variable of its secret would be {variable}, the same as that of "
                    f"{other_key.label}: rename one of the two keys",
                )
            twin = deployments.setdefault((entry.key_id, entry.model), entry)
            if twin is not entry:
                self._error(
                    entry,
                    f"model {entry.model!r} is already deployed on this key by {twin.label}: "
                    "remove one of the two",
                )
        if self.file.entries and not any(entry.active for entry in self.file.entries):
            file = self.file.entries[0].file
            self.report.error(f"{file}: keys", 'no key is active: set "active": true on at least one')

    def _check_names(self) -> None:
        """Reject names that the Gemini API has not, and two spellings of one model in a project.

        A model of two names would have two counts, and so twice its quota.
        """
        spelt: dict[tuple[str, str], Entry] = {}
        for entry in self.file.entries:
            if entry.provider != _GEMINI:
                continue
            if entry.model.startswith(_OF_VERTEX):
                self._error(
                    entry,
                    f"model_name: {entry.model!r} is a name of Vertex AI, which the Gemini API refuses: "
                    f"write {entry.model.rpartition('/')[2]!r}",
                )
            first = spelt.setdefault((entry.project, entry.model.casefold()), entry)
            if first.model != entry.model:
                self._error(
                    entry,
                    f"model {entry.model!r} differs from {first.model!r} in {first.label} by capitals alone: "
                    "write it as the provider does, in small letters, in both",
                )

    def _check_models(self) -> None:
        """Warn about limits of models that are not deployed."""
        deployed = {entry.model for entry in self.file.entries}
        for name in self.file.models:
            if deployed and name not in deployed:
                file = self.file.entries[0].file
                self.report.warning(f"{file}: models.{name}", "no key deploys this model: check its name")

    def _check_quotas(self, made: Sequence[tuple[Entry, tuple[Quota, ...]]]) -> None:
        """Reject different limits for one quota; all keys of a project share the quotas of a model."""
        first: dict[tuple[str, str, str], tuple[Entry, tuple[Quota, ...]]] = {}
        for entry, mine in made:
            owner = (entry.provider, entry.project, entry.model)
            other, theirs = first.setdefault(owner, (entry, mine))
            if mine != theirs:
                self._error(
                    entry,
                    f"limits of model {entry.model!r} in project {entry.project!r} are {_shown(mine)}, but "
                    f"{_shown(theirs)} in {other.label}: keys of one project share its quotas, so state the "
                    "same limits",
                )

    def _check_refills(self, made: Iterable[Deployment]) -> None:
        """Reject a refill or burst of a model of which no deployment has a quota that it could be of."""
        counted: dict[str, set[Metric]] = {}
        for deployment in made:
            counted.setdefault(deployment.model, set()).update(quota.metric for quota in deployment.quotas)
        for name, metrics in counted.items():
            model, place = self._model(name), f"{self.file.entries[0].file}: models.{name}"
            if model.burst is not None and Metric.RPM not in metrics:
                self.report.error(
                    f"{place}.burst",
                    "is a number of requests a minute, but no rpm is stated: add rpm, or remove the burst",
                )
            elif model.refill is Refill.STEADY and metrics and all(metric.is_daily for metric in metrics):
                self.report.error(
                    f"{place}.refill",
                    "is of the quotas of a minute, but none is stated (a day's come back at "
                    "midnight): add rpm or tpm, or remove the refill",
                )

    def _keys(self, used: set[str]) -> Mapping[str, Key]:
        keys: dict[str, Key] = {}
        values: dict[str, Key] = {}
        for entry in self.file.entries:
            if entry.key_id in keys:
                continue
            name = secret_name(entry.key_id)
            value, problem = self.environment.secret(name)
            if problem and entry.key_id in used and self.secrets_required:
                self._error(
                    entry,
                    f"{problem}: give it the secret of this key, in the environment or in .env, "
                    'or set "active": false in this entry',
                )
            key = Key(entry.key_id, Secret(value), entry.provider, entry.project)
            keys[entry.key_id] = key
            twin = values.setdefault(value, key) if value else key
            if (twin.provider, twin.project) != (key.provider, key.project):
                self.report.warning(
                    entry.where,
                    f"{name} contains the same secret as {secret_name(twin.key_id)}, so the provider counts "
                    'them as one key: give both the same "project", or remove one',
                )
        return keys

    def _deployment(self, entry: Entry, key: Key) -> Deployment:
        model = self._model(entry.model)
        built_in = BUILT_IN.get(entry.model, _UNKNOWN)
        limits, starts = merged(built_in.limits, model.limits, entry.limits)
        return Deployment(
            key,
            entry.model,
            workload=entry.workload or self._workload(entry.model),
            priority=entry.priority,
            quotas=quotas(limits, model, self.guard, starts),
            weight=entry.weight,
            methods=model.methods or usual_methods(entry.model),
        )

    def _model(self, name: str) -> Model:
        return self.file.models.get(name, _UNKNOWN)

    def _workload(self, model: str) -> str:
        workloads = self.file.workloads
        built_in = BUILT_IN.get(model, _UNKNOWN).workload
        for workload in (self._model(model).workload, built_in, "medium"):
            if workload in workloads:
                return str(workload)
        return workloads[len(workloads) // 2]

    def _error(self, entry: Entry, message: str) -> None:
        self.report.error(entry.where, message)


def _shown(made: tuple[Quota, ...]) -> str:
    shown = (f"{quota.metric.value} {LEARN if quota.adaptive else quota.limit}" for quota in made)
    return ", ".join(shown) or "unlimited"
