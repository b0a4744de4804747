"""Observe with Prometheus: counters, histograms and gauges in a registry of prometheus_client.

Needs prometheus-client (the extra ``prometheus``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar, cast

import attrs
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llm_router.domain.deployment import Deployment, ProjectDeployment
from llm_router.domain.kinds import Metric
from llm_router.domain.quota import MAX_LIMIT
from llm_router.errors import ConfigError
from llm_router.observe.base import (
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Quarantined,
    Refused,
    Reloaded,
    ScopeEvent,
    SendEnded,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
    error_type,
)
from llm_router.observe.labels import BoundedLabels, metadata_values
from llm_router.stores.base import RECOUNT, DeploymentSnapshot

__all__ = ["PrometheusObserver", "QuotaSource"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Buckets of the histograms: answers of language models take seconds."""

_REASONS = {**{metric.value: metric.value for metric in Metric}, RECOUNT: "recount"}
_OWN_LABELS = frozenset(("key_id", "model", "outcome", "provider", "type", "workload"))


_COUNTED = (
    AttemptEnded,
    SendEnded,
    Waiting,
    Waited,
    Refused,
    ScopeEvent,
    LimitLearnt,
    Reloaded,
    StoreLost,
    StoreBack,
)
"""What an observer is given; :meth:`PrometheusObserver.observe` says what it counts of each."""

_M = TypeVar("_M", Counter, Histogram)


class QuotaSource(Protocol):
    """What the gauges of the quotas are read from: ``router.keys``."""

    async def snapshots(self) -> Sequence[DeploymentSnapshot]:
        """Return the quotas and the cooldown of every deployment."""
        ...


class PrometheusObserver:
    """Counts what a router does in a registry of prometheus_client.

    ==========================================  =======================================================
    ``llm_router_sends_total``                  ``workload``, ``outcome``, and the names of ``labels``
    ``llm_router_send_seconds``                 ``workload``
    ``llm_router_attempts_total``               ``provider``, ``model``, ``outcome``, ``key_id``
    ``llm_router_rate_limited_total``           429s: ``provider``, ``model``, ``key_id``
    ``llm_router_attempt_seconds``              ``provider``, ``model``
    ``llm_router_tokens_total``                 ``provider``, ``model``, ``type``, and those of ``labels``
    ``llm_router_waiting``                      requests that wait now: ``reason``
    ``llm_router_wait_seconds``                 ``workload``, ``reason``
    ``llm_router_refusals_total``               by the store, and ``no_room``: ``reason``, ``model``
    ``llm_router_verdicts_total``               ``verdict``, ``scope``
    ``llm_router_reloads_total``                reloads that have changed something
    ``llm_router_store_up``                     1 while the store answers, or was never heard to fail
    ``llm_router_quota_limit``                  ``provider``, ``project``, ``model``, ``metric``, ``source``
    ``llm_router_quota_remaining_ratio``        ``provider``, ``project``, ``model``, ``metric``
    ``llm_router_cooldown_until_seconds``       Unix time; only what cools down: ``key_id``, ``model``
    ``llm_router_deployments_not_shown``        left out of the last three, since there are too many
    ==========================================  =======================================================

    An ``outcome`` is ``ok`` or the type of the error (``429``, ``network``, ``QuotaExhaustedError``, …). The
    last four are gauges that only :meth:`refresh` sets; a new limit is shown at once. No label is a key, a
    prompt or the text of an error.

    An observer may be shared by several routers. In a registry there can be one.

    Args:
        registry: Where the metrics are registered; by default the one of prometheus_client.
        labels: The names of metadata that become labels.
        max_series: How many series a metric may have by what grows without the program's doing: keys and
            metadata. Beyond it they are counted under ``other``. It is also how many deployments the
            gauges of the quotas show.

    Raises:
        ConfigError: A label has the name of one that is there anyway.
        ValueError: The registry has these metrics already.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        labels: Sequence[str] = ("tenant", "feature"),
        max_series: int = 1_000,
    ) -> None:
        into = REGISTRY if registry is None else registry
        self._metadata = tuple(labels)
        names = [re.sub(r"\W", "_", label) for label in labels]
        if taken := _OWN_LABELS.intersection(names):
            raise ConfigError(f"labels: {min(taken)!r} is a label of these metrics anyway: use another name")
        self._by_sender, self._by_user, self._by_key = (BoundedLabels(max_series) for _ in range(3))

        def counter(name: str, words: str, *names: str) -> Counter:
            return Counter(f"llm_router_{name}", words, names, registry=into)

        def seconds(name: str, words: str, *names: str) -> Histogram:
            return Histogram(f"llm_router_{name}_seconds", words, names, registry=into, buckets=_SECONDS)

        def gauge(name: str, words: str, *names: str) -> Gauge:
            return Gauge(f"llm_router_{name}", words, names, registry=into)

        self._sends = counter("sends", "Sends that ended.", "workload", "outcome", *names)
        self._send_seconds = seconds("send", "How long sends took, waiting included.", "workload")
        self._attempts = counter(
            "attempts", "Calls to a provider that ended.", "provider", "model", "outcome", "key_id"
        )
        self._limited = counter(
            "rate_limited", "Calls that were refused with 429.", "provider", "model", "key_id"
        )
        self._attempt_seconds = seconds("attempt", "How long calls took.", "provider", "model")
        self._tokens = counter(
            "tokens", "Tokens that the provider counted.", "provider", "model", "type", *names
        )
        self._waiting = gauge("waiting", "Requests that wait now.", "reason")
        self._wait_seconds = seconds("wait", "How long requests waited.", "workload", "reason")
        self._refusals = counter("refusals", "Requests without room.", "reason", "model")
        self._verdicts = counter("verdicts", "Cooldowns, quarantines and their ends.", "verdict", "scope")
        self._reloads = counter("reloads", "Reloads that have changed something.")
        self._store_up = gauge("store_up", "Whether the store answers.")
        self._children: dict[tuple[Counter | Histogram, tuple[str, ...]], Counter | Histogram] = {}
        self._quotas = _QuotaGauges(max_series)
        into.register(self._quotas)
        self._store_up.set(1)

    @property
    def wants(self) -> Collection[type[Event]]:
        """The classes of events that are counted."""
        return _COUNTED

    def observe(self, event: Event) -> None:
        """Count an event."""
        match event:
            case AttemptEnded():
                self._count_attempt(event)
            case SendEnded():
                self._count_send(event)
            case Waiting(reason=reason):
                self._waiting.labels(reason).inc()
            case Waited(reason=reason):
                self._waiting.labels(reason).dec()
                self._wait_seconds.labels(event.workload or "", reason).observe(event.seconds)
            case Refused():
                self._refusals.labels(*_refusal_labels(event)).inc()
            case CooledDown() | Quarantined() | Disabled() | Lifted():
                self._count_verdict(event)
            case LimitLearnt():
                self._quotas.note_limit(event)
            case Reloaded():
                self._reloads.inc()
            case StoreLost() | StoreBack():
                self._store_up.set(isinstance(event, StoreBack))

    async def refresh(self, source: QuotaSource) -> None:
        """Read the quotas and cooldowns of ``router.keys`` into the gauges.

        It asks the store once. Call it before the metrics are read, or every few seconds.

        Raises:
            StoreError: The store failed; the gauges are as they were.
        """
        self._quotas.show(await source.snapshots())

    def _count_attempt(self, event: AttemptEnded) -> None:
        provider, model = event.deployment.key.provider, event.deployment.model
        key_id = self._by_key.admit((event.deployment.key.key_id,))
        self._child(self._attempts, provider, model, error_type(event.error) or "ok", *key_id).inc()
        self._child(self._attempt_seconds, provider, model).observe(event.seconds)
        if event.is_rate_limited:
            self._limited.labels(provider, model, *key_id).inc()
        usage = event.usage
        words = self._by_user.admit(metadata_values(event.metadata, self._metadata))
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("thinking", usage.thinking_tokens),
            ("cached", usage.cached_tokens),
        ):
            if tokens > 0:
                self._child(self._tokens, provider, model, kind, *words).inc(tokens)

    def _count_send(self, event: SendEnded) -> None:
        workload, outcome = event.workload or "", error_type(event.error) or "ok"
        words = self._by_sender.admit(metadata_values(event.metadata, self._metadata))
        self._child(self._sends, workload, outcome, *words).inc()
        self._child(self._send_seconds, workload).observe(event.seconds)

    def _child(self, metric: _M, *values: str) -> _M:
        """Return the series of a metric with these labels, which the metric itself looks up slowly."""
        found = self._children.get((metric, values))
        if found is None:
            found = self._children[metric, values] = metric.labels(*values)
        return cast("_M", found)

    def _count_verdict(self, event: ScopeEvent) -> None:
        # A scope begins with its kind: a key, a project, a model of a project, a provider.
        self._verdicts.labels(event.name, event.scope.partition(":")[0]).inc()


def _refusal_labels(event: Refused) -> tuple[str, str]:
    """Return why, in one of a few words, since the reason of a cooldown may be any text, and the model."""
    if event.deployment is None:
        return "no_room", ""
    return _REASONS.get(event.reason, "cooldown"), event.deployment.model


_Where = tuple[str, str, str, str]


@attrs.frozen
class _Limit:
    """A limit that is shown, how it is known, and the share that is left of it, if that is known."""

    limit: int
    source: str
    left: float | None


class _QuotaGauges(Collector):
    """The gauges of quotas and cooldowns, made of the last snapshots whenever they are asked for.

    A scrape usually comes from another thread: so what it reads is replaced, never emptied and filled.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limits: dict[_Where, _Limit] = {}
        self._cooldowns: dict[tuple[str, str], float] = {}
        self._not_shown = 0

    def show(self, snapshots: Sequence[DeploymentSnapshot]) -> None:
        """Show these snapshots from now on."""
        shown = snapshots[: self._most]
        self._limits = dict(entry for snapshot in shown for entry in _limits_of(snapshot))
        self._cooldowns = {
            (each.deployment.key.key_id, each.deployment.model): each.cooldown.until
            for each in shown
            if each.cooldown is not None
        }
        self._not_shown = len(snapshots) - len(shown)

    def note_limit(self, event: LimitLearnt) -> None:
        """Show a limit that was learnt just now; what is left of it is not known."""
        if isinstance(event.deployment, ProjectDeployment):
            return  # no snapshot tells of it, so that it would vanish again
        where = _where(event.deployment, event.metric)
        if where in self._limits or len(self._limits) < self._most:
            self._limits = {**self._limits, where: _Limit(event.limit, event.source, None)}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges, without values."""
        return _families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the gauges, with their values."""
        limits, remaining, cooldowns, not_shown = families = _families()
        for where, known in self._limits.items():
            limits.add_metric([*where, known.source], known.limit)
            if known.left is not None:
                remaining.add_metric(where, known.left)
        for whose, until in self._cooldowns.items():
            cooldowns.add_metric(whose, until)
        not_shown.add_metric((), self._not_shown)
        return families


def _families() -> list[GaugeMetricFamily]:
    where = ("provider", "project", "model", "metric")
    return [
        GaugeMetricFamily("llm_router_quota_limit", "Limits in force.", labels=[*where, "source"]),
        GaugeMetricFamily("llm_router_quota_remaining_ratio", "Quota that is left.", labels=where),
        GaugeMetricFamily(
            "llm_router_cooldown_until_seconds", "When a cooldown ends.", labels=("key_id", "model")
        ),
        GaugeMetricFamily(
            "llm_router_deployments_not_shown", "Deployments left out of the gauges.", labels=()
        ),
    ]


def _where(deployment: Deployment, metric: Metric) -> _Where:
    return deployment.key.provider, deployment.key.project, deployment.model, metric.value


def _limits_of(snapshot: DeploymentSnapshot) -> Iterable[tuple[_Where, _Limit]]:
    deployment = snapshot.deployment
    for quota in snapshot.quotas:
        if quota.limit >= MAX_LIMIT:  # it is counted, but no limit is known
            continue
        source = quota.source_on(deployment).value
        left = max(1 - quota.used / quota.limit, 0.0) if quota.limit else 0.0
        yield _where(deployment, quota.metric), _Limit(quota.limit, source, left)
