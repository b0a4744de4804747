"""Whose fault a refusal is: the rules by which its status, reasons and words decide, the first that fits.

======================================================================  =======  ==========
what came                                                               kind     scope
======================================================================  =======  ==========
407                                                                     NETWORK  path
401, 403, 404, 429 as HTML or plain text, not from the API              NETWORK  path
5xx as HTML that names a proxy                                          NETWORK  path
400 with a reason or words about the API key                            KEY      key
400 FAILED_PRECONDITION about a file, cache or interaction              REQUEST  request
400 with a reason or words about billing or the location                KEY      project
400 about what the model cannot do: features, modes, lengths            REQUEST  model
400 FAILED_PRECONDITION otherwise                                       KEY      project
401                                                                     KEY      key
402 (prepaid credits are spent: lasting)                                QUOTA    project
403 with a reason about the API key                                     KEY      key
403 with a reason about the project (a suspension is lasting)           KEY      project
403 that names a model                                                  MODEL    deployment
403 with any other reason                                               KEY      key
403 about a file, cache or interaction                                  REQUEST  request
403 with words about the project (suspended, lasting; denied access)    KEY      project
403 with words about the API key (leaked, blocked)                      KEY      key
403 otherwise                                                           MODEL    deployment
404 about a file, cache or interaction, without a model or a reason     REQUEST  request
404 otherwise                                                           MODEL    deployment
408                                                                     TIMEOUT  path
429 about the model's capacity                                          SERVER   deployment
429 with words about credits or a spending cap (lasting)                QUOTA    project
429 with words about a spend limit                                      QUOTA    project
429 that names a quota which all models of the project share            QUOTA    project
429 that names a quota of a tool                                        QUOTA    feature
429 that names no quota, for a request with such a tool                 QUOTA    feature
429 otherwise                                                           QUOTA    deployment
other 4xx                                                               REQUEST  request
other 5xx                                                               SERVER   deployment
any other status                                                        NETWORK  path
======================================================================  =======  ==========
"""

from __future__ import annotations

import re
from collections.abc import Container

import attrs

from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.providers._gemini_error_body import BodyForm, ErrorBody

__all__ = ["Fault", "fault_of"]


@attrs.frozen
class Fault:
    """What a refusal means.

    Attributes:
        kind: What went wrong.
        scope: What it is about; None is the usual scope of the kind.
        feature: The tool it is about, if the scope is FEATURE.
        lasting: Whether it will not pass within hours.
        spending: Whether it is for what the project spent in ten minutes.
    """

    kind: FailureKind
    scope: FaultScope | None = None
    feature: str | None = None
    lasting: bool = False
    spending: bool = False


@attrs.frozen(kw_only=True)
class _Rule:
    """What a refusal means that meets all the conditions given.

    Attributes:
        codes: Its status is one of these.
        forms: Its body looks like one of these.
        status: It has this status word.
        reason: One of its reasons matches this as a whole.
        words: Its message contains this.
        wider: Its quotas have this scope.
        unexplained: It names no quota, and the request uses a tool that has one of its own.
        then: What it means.
    """

    codes: Container[int]
    then: Fault
    forms: Container[BodyForm] | None = None
    status: str | None = None
    reason: re.Pattern[str] | None = None
    words: re.Pattern[str] | None = None
    wider: FaultScope | None = None
    unexplained: bool = False

    def fits(self, code: int, body: ErrorBody, tools: tuple[str, ...]) -> bool:
        """Return whether a refusal of a request with ``tools`` meets the conditions."""
        return (
            code in self.codes
            and (self.forms is None or body.form in self.forms)
            and self.status in (None, body.status)
            and (self.reason is None or any(map(self.reason.fullmatch, body.reasons)))
            and (self.words is None or self.words.search(body.message) is not None)
            and self.wider in (None, body.wider)
            and not (self.unexplained and (body.violations or not tools))
        )


def fault_of(code: int, body: ErrorBody, tools: tuple[str, ...]) -> Fault:
    """Return what a refusal means.

    Args:
        code: Its HTTP status.
        body: Its body.
        tools: The tools of the request that have quotas of their own.
    """
    body = attrs.evolve(body, message=body.message[:_READ])
    fault = next((rule.then for rule in _RULES if rule.fits(code, body, tools)), _PATH_FAULT)
    if fault.scope is not FaultScope.FEATURE:
        return fault
    # The names of quotas are inexact: a tool that the request does not use is not what it spent.
    by_name = body.tool in tools or not tools
    return attrs.evolve(fault, feature=body.tool if by_name else tools[0])


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_READ = 2_000
"""The characters of a message that are searched for words; the API's own are never longer."""

_CLIENT_ERRORS, _SERVER_ERRORS = range(400, 500), range(500, 600)
_FOREIGN = frozenset(BodyForm) - {BodyForm.API}

_KEY_REASON = re.compile("API_KEY_[A-Z_]+")
_PROJECT_REASON = re.compile(
    "BILLING_DISABLED|CONSUMER_INVALID|CONSUMER_SUSPENDED|LOCATION_TAX_POLICY_VIOLATED"
    "|SECURITY_POLICY_VIOLATED|SERVICE_DISABLED|USER_PROJECT_DENIED"
)
_SUSPENDED_REASON = re.compile("CONSUMER_SUSPENDED")
_CAPACITY_REASON = re.compile("MODEL_CAPACITY_EXHAUSTED")
_ANY_REASON = re.compile(".*")

_KEY_NOT_VALID = _words(r"\bAPI key (?:not valid|not found|expired)\b", r"\bvalid API key\b")
_KEY_REFUSED = _words(
    r"\bAPI[ _]keys?\b", r"\breported as leaked\b", r"\bare blocked\b", r"\bunregistered callers\b"
)
_PROJECT_REFUSED = _words(
    r"\bproject has been denied\b",
    r"\bresource project\b",
    r"\bproject\b.*\bdisabled\b",
    r"\bbilling\b",
)
_SUSPENDED = _words(r"\bsuspended\b")
_NO_BILLING = _words(
    r"\blocation is not supported\b",
    r"\bfree tier is not available\b",
    r"\benable billing\b",
    r"\bbilling (?:account )?(?:is|has|must)\b",
)
_STORED_DATA = _words(r"\bfiles?\b", r"\bcached[ _]?contents?\b", r"\binteractions?\b")
_MODEL_NAME = _words(r"\bmodels/\S")
_MODEL_CANNOT = _words(
    r"\bnot enabled for (?:this model|models?/)",
    r"\bnot supported (?:by|for|in|on|with) (?:this|the|the requested|your) model\b",
    r"\b(?:this|the|requested) model (?:only|does not|doesn't|cannot|is not able)\b",
    r"\b(?:model |models/)\S+ (?:only|does not|doesn't|cannot|accepts|is not able)\b",
    r"\bthinking\w*(?: \w+){0,2} (?:is|are) not supported\b",
    r"\bthinking[ _]budget \S+ is invalid\b",
    r"\bthought[ _]?signatures?\b",
    r"\bgrounding is not supported\b",
    r"\bwith a response mime type\b.*\bunsupported\b",
    r"\bonly supports \w+ output\b",
    r"\btoken count\b.*\bexceeds the maximum\b",
    r"\bcontext (?:window|length)\b",
    r"\bsupported range is\b",
)
_MONEY = _words(
    r"\bspend(?:ing)?[- ]caps?\b",
    r"\bmonthly spend(?:ing)?\b",
    r"\bprepa(?:y|id|yment)\b.*\b(?:depleted|exhausted|spent)\b",
    r"\bcredits? (?:are|is|have been) (?:depleted|exhausted)\b",
)
_SPENDING = _words(r"\bspend(?:ing)?[- ](?:based|limits?|rates?)\b")
_CAPACITY = _words(r"\bno capacity\b", r"\bmodel is (?:currently )?overloaded\b", r"\bhigh demand\b")

_PATH_FAULT = Fault(FailureKind.NETWORK, FaultScope.PATH)
_REQUEST_FAULT = Fault(FailureKind.REQUEST)
_MODEL_FAULT = Fault(FailureKind.REQUEST, FaultScope.MODEL)
_KEY_FAULT = Fault(FailureKind.KEY)
_PROJECT_FAULT = Fault(FailureKind.KEY, FaultScope.PROJECT)
_SUSPENDED_FAULT = Fault(FailureKind.KEY, FaultScope.PROJECT, lasting=True)
_NO_SUCH_MODEL = Fault(FailureKind.MODEL)
_OVERLOADED = Fault(FailureKind.SERVER)
_QUOTA = Fault(FailureKind.QUOTA)
_PROJECT_QUOTA = Fault(FailureKind.QUOTA, FaultScope.PROJECT)
_SPENT = Fault(FailureKind.QUOTA, FaultScope.PROJECT, spending=True)
_NO_MONEY = Fault(FailureKind.QUOTA, FaultScope.PROJECT, lasting=True)
_TOOL_QUOTA = Fault(FailureKind.QUOTA, FaultScope.FEATURE)

_RULES = (
    _Rule(codes={407}, then=_PATH_FAULT),
    _Rule(codes={401, 403, 404, 429}, forms=_FOREIGN, then=_PATH_FAULT),
    _Rule(codes=_SERVER_ERRORS, forms={BodyForm.PROXY_PAGE}, then=_PATH_FAULT),
    # 400
    _Rule(codes={400}, reason=_KEY_REASON, then=_KEY_FAULT),
    _Rule(codes={400}, words=_KEY_NOT_VALID, then=_KEY_FAULT),
    _Rule(codes={400}, status="FAILED_PRECONDITION", words=_STORED_DATA, then=_REQUEST_FAULT),
    _Rule(codes={400}, reason=_PROJECT_REASON, then=_PROJECT_FAULT),
    _Rule(codes={400}, words=_NO_BILLING, then=_PROJECT_FAULT),
    _Rule(codes={400}, words=_MODEL_CANNOT, then=_MODEL_FAULT),
    _Rule(codes={400}, status="FAILED_PRECONDITION", then=_PROJECT_FAULT),
    # 401 and 402
    _Rule(codes={401}, then=_KEY_FAULT),
    _Rule(codes={402}, then=_NO_MONEY),
    # 403
    _Rule(codes={403}, reason=_KEY_REASON, then=_KEY_FAULT),
    _Rule(codes={403}, reason=_SUSPENDED_REASON, then=_SUSPENDED_FAULT),
    _Rule(codes={403}, reason=_PROJECT_REASON, then=_PROJECT_FAULT),
    _Rule(codes={403}, words=_MODEL_NAME, then=_NO_SUCH_MODEL),
    _Rule(codes={403}, reason=_ANY_REASON, then=_KEY_FAULT),
    _Rule(codes={403}, words=_STORED_DATA, then=_REQUEST_FAULT),
    _Rule(codes={403}, words=_SUSPENDED, then=_SUSPENDED_FAULT),
    _Rule(codes={403}, words=_PROJECT_REFUSED, then=_PROJECT_FAULT),
    _Rule(codes={403}, words=_KEY_REFUSED, then=_KEY_FAULT),
    _Rule(codes={403}, then=_NO_SUCH_MODEL),
    # 404 and 408
    _Rule(codes={404}, reason=_ANY_REASON, then=_NO_SUCH_MODEL),
    _Rule(codes={404}, words=_MODEL_NAME, then=_NO_SUCH_MODEL),
    _Rule(codes={404}, words=_STORED_DATA, then=_REQUEST_FAULT),
    _Rule(codes={404}, then=_NO_SUCH_MODEL),
    _Rule(codes={408}, then=Fault(FailureKind.TIMEOUT)),
    # 429
    _Rule(codes={429}, reason=_CAPACITY_REASON, then=_OVERLOADED),
    _Rule(codes={429}, words=_CAPACITY, then=_OVERLOADED),
    _Rule(codes={429}, words=_MONEY, then=_NO_MONEY),
    _Rule(codes={429}, words=_SPENDING, then=_SPENT),
    _Rule(codes={429}, wider=FaultScope.PROJECT, then=_PROJECT_QUOTA),
    _Rule(codes={429}, wider=FaultScope.FEATURE, then=_TOOL_QUOTA),
    _Rule(codes={429}, unexplained=True, then=_TOOL_QUOTA),
    _Rule(codes={429}, then=_QUOTA),
    # the rest
    _Rule(codes=_CLIENT_ERRORS, then=_REQUEST_FAULT),
    _Rule(codes=_SERVER_ERRORS, then=_OVERLOADED),
)
