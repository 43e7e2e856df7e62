"""Prometheus metrics, one registry for each application."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from domain.usage import Usage

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What is counted. Labels are bounded: route templates, agent ids and model ids that exist, never caller text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "routeur_http_requests", "HTTP requests answered", ("method", "route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "routeur_http_request_seconds",
            "Time until the last byte, in seconds",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        #: Plain numbers, read when somebody looks: they change with every request.
        self.requests_open = 0
        self.runs_open = 0
        Gauge(
            "routeur_http_requests_open", "Requests being answered, streams included", registry=self.registry
        ).set_function(lambda: self.requests_open)
        self._runs = Counter("routeur_runs", "Runs ended", ("agent", "outcome"), registry=self.registry)
        self._run_seconds = Histogram(
            "routeur_run_seconds", "Duration of a run, in seconds", ("agent",), buckets=_SECONDS, registry=self.registry
        )
        Gauge("routeur_runs_open", "Runs going on", registry=self.registry).set_function(lambda: self.runs_open)
        self.background_open = Gauge(
            "routeur_background_runs_open", "Background runs going on in this process", registry=self.registry
        )
        self.realtime_open = Gauge(
            "routeur_realtime_sessions_open", "Realtime sessions open in this process", registry=self.registry
        )
        self.queue_depth = Gauge(
            "routeur_queue_depth", "Background runs that wait for a worker, of everybody", registry=self.registry
        )
        self._recovered = Counter(
            "routeur_runs_recovered",
            "Runs of dead processes that were seen to",
            ("outcome",),
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "routeur_loop_lag_seconds",
            "How late the event loop was, the worst of the last seconds",
            registry=self.registry,
        )
        self.loop_blocked = Counter(
            "routeur_loop_blocked",
            "Times that an agent was stopped because it held up the process",
            registry=self.registry,
        )
        self._webhooks = Counter("routeur_webhooks", "Webhook deliveries tried", ("outcome",), registry=self.registry)
        self._tokens = Counter(
            "routeur_tokens", "Tokens that providers reported", ("model", "direction"), registry=self.registry
        )
        self._unmeasured = Counter(
            "routeur_model_calls_unmeasured",
            "Model calls whose provider reported no usage",
            ("model",),
            registry=self.registry,
        )
        self._replaced = Counter(
            "routeur_model_calls_replaced",
            "Model calls that another model was asked to answer instead, by what went wrong",
            ("model", "kind"),
            registry=self.registry,
        )
        self.models_cooling = Gauge(
            "routeur_models_cooling", "Models that are set aside after failures", registry=self.registry
        )
        self._swept = Counter(
            "routeur_swept", "Records deleted because their period was over", ("what",), registry=self.registry
        )
        # Children are looked up once for each combination: labels() hashes and locks at every call.
        self._children: dict[tuple[str, ...], tuple[Counter, Histogram]] = {}
        self._tokens_of: dict[str, tuple[Counter, Counter]] = {}

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """One HTTP answer is out. `route` is the template (`/agents/{id}`), not the path."""
        key = (method, route, str(status))
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = (self._requests.labels(*key), self._request_seconds.labels(method, route))
        child[0].inc()
        child[1].observe(seconds)

    def run_ended(self, agent: str, outcome: str, seconds: float) -> None:
        """One run is over; `outcome` is the terminal event's word (finished, failed, cancelled, timed_out)."""
        key = ("run", agent, outcome)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = (self._runs.labels(agent, outcome), self._run_seconds.labels(agent))
        child[0].inc()
        child[1].observe(seconds)

    def model_called(self, model: str, usage: Usage | None) -> None:
        """One model call is over."""
        if usage is None:
            self._unmeasured.labels(model).inc()
            return
        tokens = self._tokens_of.get(model)
        if tokens is None:
            tokens = self._tokens_of[model] = (
                self._tokens.labels(model, "input"),
                self._tokens.labels(model, "output"),
            )
        tokens[0].inc(usage.input_tokens)
        tokens[1].inc(usage.output_tokens)

    def replaced(self, model: str, kind: str) -> None:
        """Somebody else was asked instead of `model`: down, rate_limited, context_length, not_found or set_aside."""
        self._replaced.labels(model, kind).inc()

    def recovered(self, requeued: int, lost: int, cancelled: int) -> None:
        """Runs of dead processes were found."""
        for outcome, count in (("requeued", requeued), ("lost", lost), ("cancelled", cancelled)):
            if count:
                self._recovered.labels(outcome).inc(count)

    def webhook_tried(self, outcome: str) -> None:
        """One delivery was tried: delivered, failed, or to be tried again."""
        self._webhooks.labels(outcome).inc()

    def swept(self, what: str, count: int) -> None:
        """A sweep deleted that many."""
        self._swept.labels(what).inc(count)

    def render(self) -> bytes:
        """The text format that Prometheus reads."""
        return generate_latest(self.registry)
