//! Exporters of traces and metrics over OTLP, set up by the standard variables of OpenTelemetry.

use std::env;

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter};
use opentelemetry_sdk::{Resource, metrics::SdkMeterProvider, trace::SdkTracerProvider};

/// What exports, each where it was asked for.
#[derive(Debug, Default)]
pub(super) struct Exporters {
    pub(super) traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exporters {
    /// The exporters that the environment asks for. They connect when they first have something to send.
    pub(super) fn from_env(service_name: &str) -> Result<Self, ExporterBuildError> {
        let mut exporters = Self::default();
        if wanted("TRACES") {
            let exporter = SpanExporter::builder().with_tonic().build()?;
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
            exporters.traces = Some(provider.with_resource(resource(service_name)).build());
        }
        if wanted("METRICS") {
            let exporter = MetricExporter::builder().with_tonic().build()?;
            let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter);
            let provider = provider.with_resource(resource(service_name)).build();
            global::set_meter_provider(provider.clone());
            exporters.metrics = Some(provider);
        }
        Ok(exporters)
    }

    pub(super) const fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Sends what is held back and ends. It blocks: the exporters have threads of their own.
    pub(super) fn shut_down(self) {
        let traces = self.traces.map(|traces| traces.shutdown());
        let metrics = self.metrics.map(|metrics| metrics.shutdown());
        for error in [traces, metrics].into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "telemetry held back is lost");
        }
    }
}

/// True if the environment says where a signal goes, and neither switches it nor everything off.
fn wanted(signal: &str) -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found.eq_ignore_ascii_case(value));
    let endpoint = set("OTEL_EXPORTER_OTLP_ENDPOINT") || set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
    let off = is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{signal}_EXPORTER"), "none");
    (endpoint || is(&format!("OTEL_{signal}_EXPORTER"), "otlp")) && !off
}

/// Who tells: the service's own name, unless the environment gives another.
fn resource(service_name: &str) -> Resource {
    let named =
        Resource::builder_empty().with_attribute(KeyValue::new("service.name", service_name.to_owned())).build();
    let mut resource = Resource::builder();
    if env::var_os("OTEL_SERVICE_NAME").is_none() {
        for (key, value) in &named {
            resource = resource.with_attribute(KeyValue::new(key.clone(), value.clone()));
        }
    }
    resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}
