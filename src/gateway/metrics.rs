//! GET /metrics: figures for Prometheus. No name of a session, a phase or a resource is a label, so there are never more
//! rows than the code has words.

use std::{collections::BTreeMap, fmt, fs, sync::atomic::AtomicU64, time::Duration};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use super::{Gateway, Role, fault::Fault, media, query::Query};
use crate::{
    bus::Bus,
    controller::{View, call},
    resource::ConditionReason,
};

/// Upper bounds of answers' durations, in seconds: a cached read takes one millisecond, a write some ten.
const DURATIONS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    /// As the router knows it: `/phases/{id}`.
    route: String,
    method: &'static str,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    open: Gauge<i64>,
}

impl Meters {
    pub fn new(view: View, role: Role, bus: Option<Bus>) -> Self {
        let mut registry = Registry::with_prefix("pmp");
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<RouteLabels, Histogram>::new_with_constructor(|| Histogram::new(DURATIONS));
        let open = Gauge::<i64>::default();
        registry.register("http_requests", "Requests by route, method and status", requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "From the header of a request to that of its answer",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register("http_requests_in_flight", "Requests being answered", open.clone());
        registry.register_collector(Box::new(Pulse { view, role, bus }));
        registry.register_collector(Box::new(ApiCalls));
        registry.register_collector(Box::new(Process::default()));
        Self { registry, requests, durations, open }
    }

    /// A request came in; it is in flight until this is dropped.
    pub fn begin(&self) -> InFlight {
        self.open.inc();
        InFlight(self.open.clone())
    }

    /// It was answered.
    pub fn answered(&self, route: &str, method: &axum::http::Method, code: StatusCode, took: Duration) {
        let labels = RequestLabels { route: route.to_owned(), method: known(method), code: code.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.durations.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }
}

/// One request in flight.
pub struct InFlight(Gauge<i64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A method may be any word that a client thinks of.
fn known(method: &axum::http::Method) -> &'static str {
    ["GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"]
        .into_iter()
        .find(|known| method.as_str() == *known)
        .unwrap_or("other")
}

/// GET /metrics.
pub async fn get_metrics(State(gateway): State<Gateway>, request: Request) -> Result<Response, Fault> {
    Query::of(request.uri().query(), &[])?;
    media::preferred(request.headers(), &[media::TEXT])?;
    let mut text = String::new();
    encode(&mut text, &gateway.meters.registry)
        .map_err(|_| Fault::unavailable("NoMetrics", "the figures cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, media::TEXT)], text).into_response())
}

/// Sessions and the bus, looked at when asked.
struct Pulse {
    view: View,
    role: Role,
    bus: Option<Bus>,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pulse")
    }
}

impl Collector for Pulse {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        if self.role == Role::Operator {
            let mut states: BTreeMap<&str, i64> = BTreeMap::new();
            for object in self.view.all() {
                let state = object.status.as_ref().and_then(|status| status.state.as_deref());
                *states.entry(word(state)).or_default() += 1;
            }
            let mut family = encoder.encode_descriptor(
                "sessions",
                "Sessions by state",
                None,
                prometheus_client::metrics::MetricType::Gauge,
            )?;
            for (state, count) in states {
                ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
            }
        }
        if let Some(link) = self.bus.as_ref().map(|bus| bus.link().borrow().clone()) {
            gauge(&mut encoder, "bus_connected", "Whether the bus is connected", i64::from(link.is_connected()))?;
            let epochs = "Connections made, and losses in a full queue";
            counter(&mut encoder, "bus_epochs", epochs, link.epoch)?;
        }
        if let Some(counters) = self.view.bus_counters() {
            let rows = [
                ("received", counters.received),
                ("misdirected", counters.misdirected),
                ("malformed", counters.malformed),
                ("unclaimed", counters.unclaimed),
                ("missed", counters.missed),
                ("own", counters.own),
                ("foreign", counters.foreign),
            ];
            let mut family = encoder.encode_descriptor(
                "bus_messages",
                "Messages that were heard, by what became of them; all are received",
                None,
                prometheus_client::metrics::MetricType::Counter,
            )?;
            for (what, count) in rows {
                ConstCounter::new(count).encode(family.encode_family(&[("what", what)])?)?;
            }
        }
        Ok(())
    }
}

/// A state of ours, or `Other`: whoever writes a status must not be able to add rows here.
fn word(state: Option<&str>) -> &'static str {
    let Some(state) = state else { return "New" };
    ConditionReason::ALL.into_iter().map(ConditionReason::as_str).find(|known| *known == state).unwrap_or("Other")
}

/// Calls to the API server.
#[derive(Debug)]
struct ApiCalls;

impl Collector for ApiCalls {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "api_calls",
            "Calls to the API server, by what for and how they ended",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (what, outcome, count) in call::tally() {
            let labels = [("what", what), ("outcome", outcome.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The process itself, as /proc tells of it; nothing where there is no /proc.
#[derive(Debug, Default)]
struct Process {
    /// Never counted down: a scrape that fails tells the last value.
    cpu_ticks: AtomicU64,
}

/// Of USER_HZ, which Linux has shown to programs as 100 for thirty years.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of every architecture that this runs on but for some with larger ones; only a figure.
const PAGE_BYTES: u64 = 4096;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        use std::sync::atomic::Ordering;
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Behind the name in parentheses, which may hold anything: state, then numbers; utime and stime are 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        if let (Some(user), Some(system)) = (number(11), number(12)) {
            self.cpu_ticks.fetch_max(user + system, Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "a process does not live for 2^52 ticks")]
            let seconds = self.cpu_ticks.load(Ordering::Relaxed) as f64 / TICKS_PER_SECOND;
            let counter = ConstCounter::new(seconds);
            let help = "Processor time of the process";
            let unit = Some(&Unit::Seconds);
            counter.encode(encoder.encode_descriptor("process_cpu", help, unit, counter.metric_type())?)?;
        }
        if let Some(pages) = number(21) {
            let bytes = i64::try_from(pages * PAGE_BYTES).unwrap_or(i64::MAX);
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory of the process", bytes)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let count = i64::try_from(open.count()).unwrap_or(i64::MAX);
            gauge(&mut encoder, "process_open_fds", "Open file descriptors of the process", count)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(encoder)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    let encoder = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    counter.encode(encoder)
}
