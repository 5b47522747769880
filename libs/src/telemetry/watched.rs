//! Exporters that are watched: what they send may not arrive for weeks, and nobody would know.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanExporter},
};

/// Tells in the log when an exporter begins to fail, and when that is over: two lines an outage, however long it is. They are said on the
/// exporter's own thread and within no span, so that no span has to be exported for them.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    signal: &'static str,
    /// How many exports have failed since the last that didn't.
    failed: AtomicU64,
}

impl<E> Watched<E> {
    pub(super) const fn new(signal: &'static str, exporter: E) -> Self {
        Self { exporter, signal, failed: AtomicU64::new(0) }
    }

    fn note(&self, ended: OTelSdkResult) -> OTelSdkResult {
        let signal = self.signal;
        match &ended {
            Ok(()) => match self.failed.swap(0, Ordering::Relaxed) {
                0 => {}
                exports_lost => tracing::info!(signal, exports_lost, "telemetry reaches its collector again"),
            },
            Err(error) => {
                if self.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(signal, %error, "telemetry doesn't reach its collector: it is lost until that is mended");
                }
            }
        }
        ended
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.note(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.note(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::error::OTelSdkError;
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

    use super::*;

    /// Keeps the lines.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut line = event.metadata().level().to_string();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                if field.name() == "exports_lost" {
                    line = format!("{line} {value:?}");
                }
            });
            self.0.lock().unwrap().push(line);
        }
    }

    #[test]
    fn an_outage_is_two_lines_however_long_it_is() {
        let kept = Kept::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(kept.clone()));
        let watched = Watched::new("traces", ());
        for out in [false, true, true, true, false, false, true] {
            let ended = if out { Err(OTelSdkError::InternalFailure("refused".into())) } else { Ok(()) };
            assert_eq!(watched.note(ended).is_err(), out, "whoever exports hears it as well");
        }
        assert_eq!(*kept.0.lock().unwrap(), ["WARN", "INFO 3", "WARN"]);
    }
}
