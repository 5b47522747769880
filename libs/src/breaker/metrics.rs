//! Breakers as OpenTelemetry metrics, read when they are exported: a call pays nothing for them.
//!
//! `docs/operations.md` has them in a table.

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Registry, State, Totals};

/// Has a registry's breakers and fallbacks observed by this meter.
pub fn observe(registry: &Registry, meter: &Meter) {
    observe_states(registry, meter);
    observe_open_times(registry, meter);
    observe_fallbacks(registry, meter);
    let count = |about: About, parts: &[Part]| count(registry, meter, about, parts.to_vec());
    count(
        About { metric: "breaker.calls", unit: "{call}", text: "Calls by what they said about the peer." },
        &[
            (Some(("outcome", "success")), |totals| totals.success),
            (Some(("outcome", "failure")), |totals| totals.failure),
            (Some(("outcome", "overload")), |totals| totals.overload),
            (Some(("outcome", "neutral")), |totals| totals.neutral),
        ],
    );
    count(
        About { metric: "breaker.rejected", unit: "{call}", text: "Calls refused here, by why." },
        &[
            (Some(("reason", "open")), |totals| totals.rejected.open),
            (Some(("reason", "half_open_saturated")), |totals| totals.rejected.half_open_saturated),
            (Some(("reason", "recovering")), |totals| totals.rejected.recovering),
            (Some(("reason", "forced_open")), |totals| totals.rejected.forced_open),
            (Some(("reason", "throttled")), |totals| totals.rejected.throttled),
        ],
    );
    count(
        About { metric: "breaker.abandoned", unit: "{call}", text: "Calls that nobody waited for." },
        &[
            (Some(("judged", "failure")), |totals| totals.abandoned_failure),
            (Some(("judged", "neutral")), |totals| totals.abandoned_neutral),
        ],
    );
    count(
        About { metric: "breaker.would_reject", unit: "{call}", text: "Calls a shadow would have refused." },
        &[(None, |totals| totals.would_reject)],
    );
    count(
        About { metric: "breaker.stale", unit: "{call}", text: "Results that came after a transition." },
        &[(None, |totals| totals.stale)],
    );
    count(
        About { metric: "breaker.opened", unit: "{transition}", text: "Times it opened." },
        &[(None, |totals| totals.opened)],
    );
    count(
        About { metric: "breaker.probes", unit: "{probe}", text: "Permits that half-open circuits lent." },
        &[(None, |totals| totals.probes.lent)],
    );
    count(
        About { metric: "breaker.probes_ended", unit: "{probe}", text: "Probes that are over, by how they ended." },
        &[
            (Some(("outcome", "success")), |totals| totals.probes.success),
            (Some(("outcome", "failure")), |totals| totals.probes.failure),
            (Some(("outcome", "neutral")), |totals| totals.probes.neutral),
            (Some(("outcome", "overtaken")), |totals| totals.probes.overtaken),
            (Some(("outcome", "timed_out")), |totals| totals.probe_timeouts),
        ],
    );
}

/// What a metric is.
#[derive(Clone, Copy)]
struct About {
    metric: &'static str,
    unit: &'static str,
    text: &'static str,
}

/// An attribute, if there is one, and the count that goes with it.
type Part = (Option<(&'static str, &'static str)>, fn(&Totals) -> u64);

fn name(name: &str) -> KeyValue {
    KeyValue::new("breaker.name", name.to_owned())
}

// The instruments live as long as their meter's provider: their handles are not needed.

fn count(registry: &Registry, meter: &Meter, about: About, parts: Vec<Part>) {
    let registry = registry.clone();
    let _counter = meter
        .u64_observable_counter(about.metric)
        .with_unit(about.unit)
        .with_description(about.text)
        .with_callback(move |observer| {
            for breaker in registry.list("") {
                let totals = breaker.snapshot().totals;
                for (attribute, read) in &parts {
                    let attribute = attribute.map(|(key, value)| KeyValue::new(key, value));
                    let attributes: Vec<_> = [name(breaker.name())].into_iter().chain(attribute).collect();
                    observer.observe(read(&totals), &attributes);
                }
            }
        })
        .build();
}

fn observe_states(registry: &Registry, meter: &Meter) {
    let registry = registry.clone();
    let _gauge = meter
        .u64_observable_gauge("breaker.state")
        .with_description("Where the circuit stands: 0 closed, 1 open, 2 half-open, 3 recovering.")
        .with_callback(move |observer| {
            for breaker in registry.list("") {
                let state = match breaker.state() {
                    State::Closed => 0,
                    State::Open => 1,
                    State::HalfOpen => 2,
                    State::Recovering => 3,
                };
                observer.observe(state, &[name(breaker.name())]);
            }
        })
        .build();
}

fn observe_open_times(registry: &Registry, meter: &Meter) {
    let registry = registry.clone();
    let _counter = meter
        .f64_observable_counter("breaker.open_time")
        .with_unit("s")
        .with_description("How long it was open.")
        .with_callback(move |observer| {
            for breaker in registry.list("") {
                observer.observe(breaker.snapshot().totals.open_time.as_secs_f64(), &[name(breaker.name())]);
            }
        })
        .build();
}

fn observe_fallbacks(registry: &Registry, meter: &Meter) {
    let registry = registry.clone();
    let _counter = meter
        .u64_observable_counter("breaker.fallbacks")
        .with_unit("{answer}")
        .with_description("Answers given in a peer's place, and those that nobody had.")
        .with_callback(move |observer| {
            for (name, fallback) in registry.fallbacks() {
                for (outcome, count) in [("served", fallback.served()), ("missed", fallback.missed())] {
                    let name = KeyValue::new("fallback.name", name.to_string());
                    observer.observe(count, &[name, KeyValue::new("outcome", outcome)]);
                }
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::{
        InMemoryMetricExporter, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    };

    use super::*;
    use crate::breaker::{Class, Config, ManualClock};

    /// What is exported, a line each: the metric, its attributes, its value.
    fn exported(registry: &Registry) -> Vec<String> {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        observe(registry, &provider.meter("breaker"));
        provider.force_flush().expect("exported");
        let finished = exporter.get_finished_metrics().expect("kept");
        let metrics = finished.iter().flat_map(|of| of.scope_metrics()).flat_map(|scope| scope.metrics());
        let line = |metric: &str, attributes: Vec<&KeyValue>, value: String| {
            let mut said: Vec<_> =
                attributes.iter().map(|pair| format!("{}={}", pair.key, pair.value.as_str())).collect();
            said.sort();
            format!("{metric} {} {value}", said.join(" "))
        };
        metrics
            .flat_map(|metric| match metric.data() {
                AggregatedMetrics::U64(MetricData::Gauge(gauge)) => gauge
                    .data_points()
                    .map(|point| line(metric.name(), point.attributes().collect(), point.value().to_string()))
                    .collect(),
                AggregatedMetrics::U64(MetricData::Sum(sum)) => sum
                    .data_points()
                    .map(|point| line(metric.name(), point.attributes().collect(), point.value().to_string()))
                    .collect(),
                AggregatedMetrics::F64(MetricData::Sum(sum)) => sum
                    .data_points()
                    .map(|point| line(metric.name(), point.attributes().collect(), point.value().to_string()))
                    .collect(),
                _ => Vec::new(),
            })
            .collect()
    }

    #[tokio::test]
    async fn breakers_and_fallbacks_are_seen_when_metrics_are_exported() {
        let clock = std::sync::Arc::new(ManualClock::default());
        let registry = Registry::with_clock(clock.clone());
        let config = Config::builder().consecutive_failures(1).build().expect("makes sense");
        let payment = registry.breaker("payment", &config);
        drop(payment.admit().expect("closed"));
        payment.admit().expect("closed").finish(Class::Failure);
        clock.advance(Duration::from_millis(1_500));
        payment.admit().expect_err("open");
        let fallback = registry.fallback("shipment").or_on(&[tonic::Code::Unavailable]);
        let away = || std::future::ready(Err::<u8, _>(tonic::Status::unavailable("away")));
        fallback.or_default(away()).await.expect("a default");
        fallback.or_else(away(), |_| std::future::ready(None)).await.expect_err("nobody has one");

        let exported = exported(&registry);
        for line in [
            "breaker.state breaker.name=payment 1",
            "breaker.calls breaker.name=payment outcome=failure 1",
            "breaker.calls breaker.name=payment outcome=neutral 1",
            "breaker.abandoned breaker.name=payment judged=neutral 1",
            "breaker.rejected breaker.name=payment reason=open 1",
            "breaker.rejected breaker.name=payment reason=forced_open 0",
            "breaker.opened breaker.name=payment 1",
            "breaker.open_time breaker.name=payment 1.5",
            "breaker.fallbacks fallback.name=shipment outcome=served 1",
            "breaker.fallbacks fallback.name=shipment outcome=missed 1",
        ] {
            assert!(exported.iter().any(|exported| exported == line), "{line} is not in {exported:#?}");
        }
    }

    #[tokio::test]
    async fn each_probe_is_seen_when_it_is_lent_and_by_how_it_ended() {
        let clock = std::sync::Arc::new(ManualClock::default());
        let registry = Registry::with_clock(clock.clone());
        let config = Config::builder().consecutive_failures(1).probes(5, 2).ramp(Duration::ZERO);
        let config = config.on_probe_timeout(crate::breaker::ProbeTimeout::Neutral).build().expect("makes sense");
        let payment = registry.breaker("payment", &config);
        payment.admit().expect("closed").finish(Class::Failure);
        clock.advance(Duration::from_secs(10));

        let mut probes: Vec<_> = (0..5).map(|_| payment.admit().expect("a probe")).collect();
        probes.pop().expect("five").finish(Class::Success);
        probes.pop().expect("four").finish(Class::Overload);
        probes.pop().expect("three").finish(Class::Neutral);
        // Two are out for longer than their lease, and are told of too late.
        clock.advance(Duration::from_secs(10));
        let (well, overtaken) = (payment.admit().expect("a place is free"), payment.admit().expect("another"));
        drop(probes);
        let under_way = exported(&registry);
        well.finish(Class::Success);
        assert_eq!(payment.state(), State::Closed);
        overtaken.finish(Class::Failure);

        let ended = |outcome, count| format!("breaker.probes_ended breaker.name=payment outcome={outcome} {count}");
        let lent = |count| format!("breaker.probes breaker.name=payment {count}");
        for (exported, lines) in [
            (under_way, [lent(7), ended("success", 1), ended("timed_out", 2), ended("overtaken", 0)].to_vec()),
            (
                exported(&registry),
                [
                    lent(7),
                    ended("success", 2),
                    ended("failure", 1),
                    ended("neutral", 1),
                    ended("overtaken", 1),
                    ended("timed_out", 2),
                ]
                .to_vec(),
            ),
        ] {
            for line in lines {
                assert!(exported.contains(&line), "{line} is not in {exported:#?}");
            }
        }
    }
}
