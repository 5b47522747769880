//! Breakers as OpenTelemetry metrics, read when they are exported: a call pays nothing for them.
//!
//! | metric | unit | attributes |
//! |---|---|---|
//! | `breaker.state` | 0 closed, 1 open, 2 half-open, 3 recovering | `breaker.name` |
//! | `breaker.calls` | `{call}` | `breaker.name`, `outcome`: success, failure, overload, neutral |
//! | `breaker.rejected` | `{call}` | `breaker.name` |
//! | `breaker.would_reject` | `{call}` | `breaker.name` |
//! | `breaker.stale` | `{call}` | `breaker.name` |
//! | `breaker.abandoned` | `{call}` | `breaker.name`, `judged`: failure, neutral |
//! | `breaker.opened` | `{transition}` | `breaker.name` |
//! | `breaker.probe_timeouts` | `{probe}` | `breaker.name` |

use opentelemetry::{KeyValue, metrics::Meter};

use super::{Registry, State, Totals};

/// Has a registry's breakers observed by this meter.
pub fn observe(registry: &Registry, meter: &Meter) {
    let watched = registry.clone();
    // The instruments live as long as their meter's provider; the handles are not needed.
    let _state = meter
        .u64_observable_gauge("breaker.state")
        .with_description("Where the circuit stands: 0 closed, 1 open, 2 half-open, 3 recovering.")
        .with_callback(move |observer| {
            for breaker in watched.list("") {
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
    let outcomes: [(&str, Read); 4] = [
        ("success", |totals| totals.success),
        ("failure", |totals| totals.failure),
        ("overload", |totals| totals.overload),
        ("neutral", |totals| totals.neutral),
    ];
    let judged: [(&str, Read); 2] =
        [("failure", |totals| totals.abandoned_failure), ("neutral", |totals| totals.abandoned_neutral)];
    count_by(registry, meter, "breaker.calls", "Calls by what they said about the peer.", "outcome", outcomes.into());
    count_by(registry, meter, "breaker.abandoned", "Calls that nobody waited for.", "judged", judged.into());
    count(registry, meter, "breaker.rejected", "Calls refused here.", |totals| totals.rejected);
    count(registry, meter, "breaker.would_reject", "Calls a shadow would have refused.", |totals| totals.would_reject);
    count(registry, meter, "breaker.stale", "Results that came after a transition.", |totals| totals.stale);
    count(registry, meter, "breaker.opened", "Times it opened.", |totals| totals.opened);
    count(registry, meter, "breaker.probe_timeouts", "Probes that never came back.", |totals| totals.probe_timeouts);
}

type Read = fn(&Totals) -> u64;

fn name(name: &str) -> KeyValue {
    KeyValue::new("breaker.name", name.to_owned())
}

fn count(registry: &Registry, meter: &Meter, metric: &'static str, about: &'static str, read: Read) {
    let registry = registry.clone();
    let _counter = meter
        .u64_observable_counter(metric)
        .with_description(about)
        .with_callback(move |observer| {
            for breaker in registry.list("") {
                observer.observe(read(&breaker.snapshot().totals), &[name(breaker.name())]);
            }
        })
        .build();
}

fn count_by(
    registry: &Registry,
    meter: &Meter,
    metric: &'static str,
    about: &'static str,
    key: &'static str,
    parts: Vec<(&'static str, Read)>,
) {
    let registry = registry.clone();
    let _counter = meter
        .u64_observable_counter(metric)
        .with_description(about)
        .with_callback(move |observer| {
            for breaker in registry.list("") {
                let totals = breaker.snapshot().totals;
                for (value, read) in &parts {
                    observer.observe(read(&totals), &[name(breaker.name()), KeyValue::new(key, *value)]);
                }
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::{
        InMemoryMetricExporter, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    };

    use super::*;
    use crate::breaker::{Class, Config};

    #[test]
    fn breakers_are_seen_when_metrics_are_exported() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        let registry = Registry::new();
        observe(&registry, &provider.meter("breaker"));
        let config = Config::builder().consecutive_failures(1).build().expect("makes sense");
        registry.breaker("payment", &config).admit().expect("closed").finish(Class::Failure);
        provider.force_flush().expect("exported");

        let exported = exporter.get_finished_metrics().expect("kept");
        let metrics = exported.iter().flat_map(|of| of.scope_metrics()).flat_map(|scope| scope.metrics());
        let values: Vec<(String, u64)> = metrics
            .flat_map(|metric| {
                let points: Vec<u64> = match metric.data() {
                    AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                        gauge.data_points().map(|point| point.value()).collect()
                    }
                    AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                        sum.data_points().map(|point| point.value()).collect()
                    }
                    _ => Vec::new(),
                };
                points.into_iter().map(|value| (metric.name().to_owned(), value)).collect::<Vec<_>>()
            })
            .collect();
        assert!(values.contains(&("breaker.state".to_owned(), 1)), "{values:?}");
        assert!(values.contains(&("breaker.opened".to_owned(), 1)), "{values:?}");
        assert!(values.contains(&("breaker.calls".to_owned(), 1)), "{values:?}");
    }
}
