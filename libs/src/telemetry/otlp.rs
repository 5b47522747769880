//! Exporters of traces and metrics over OTLP, set up by the standard variables of OpenTelemetry.

use std::env;

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    metrics::SdkMeterProvider,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::SdkTracerProvider,
};

use super::{TelemetryError, watched::Watched};

/// What exports, each where it was asked for.
#[derive(Debug, Default)]
pub(super) struct Exporters {
    pub(super) traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exporters {
    /// The exporters that the environment asks for. They connect when they first have something to send.
    pub(super) fn from_env(service_name: &str, version: &str) -> Result<Self, TelemetryError> {
        let mut exporters = Self::default();
        if wanted("TRACES") {
            check("TRACES")?;
            check_sampler()?;
            let exporter = Watched::new("traces", SpanExporter::builder().with_tonic().build()?);
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
            exporters.traces = Some(provider.with_resource(resource(service_name, version)).build());
        }
        if wanted("METRICS") {
            check("METRICS")?;
            let exporter = Watched::new("metrics", MetricExporter::builder().with_tonic().build()?);
            let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter);
            let provider = provider.with_resource(resource(service_name, version)).build();
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

/// Checks that a signal is asked for as it can be sent: the SDK would send it otherwise, or tell of its own parts.
fn check(signal: &str) -> Result<(), TelemetryError> {
    check_protocol(signal)?;
    check_endpoint(signal)?;
    check_compression(signal)
}

/// What the environment says of this signal's exporter, by its own variable or else by the one of all, and that variable.
fn said(signal: &str, what: &str) -> Option<(String, String)> {
    let names = [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
    let given = |name: String| Some((env::var(&name).ok()?, name)).filter(|(value, _)| !value.is_empty());
    names.into_iter().find_map(given)
}

/// Checks that a signal is asked for in the one protocol that is spoken here. Another port belongs to each.
fn check_protocol(signal: &str) -> Result<(), TelemetryError> {
    match said(signal, "PROTOCOL") {
        Some((protocol, variable)) if protocol != "grpc" => Err(TelemetryError::Protocol { variable, protocol }),
        _ => Ok(()),
    }
}

/// Checks that a signal goes out in plain text. An address without a scheme is one of TLS, unless a variable of its own says otherwise.
fn check_endpoint(signal: &str) -> Result<(), TelemetryError> {
    let Some((endpoint, variable)) = said(signal, "ENDPOINT") else { return Ok(()) };
    let insecure = || said(signal, "INSECURE").is_some_and(|(value, _)| value.eq_ignore_ascii_case("true"));
    let is_plain = match endpoint.split_once("://") {
        Some((scheme, _)) if !scheme.contains(['/', '?', '#']) => !scheme.eq_ignore_ascii_case("https"),
        _ => insecure(),
    };
    if is_plain { Ok(()) } else { Err(TelemetryError::Endpoint { variable }) }
}

/// Checks that a signal goes out as it is.
fn check_compression(signal: &str) -> Result<(), TelemetryError> {
    match said(signal, "COMPRESSION") {
        Some((compression, variable)) if !compression.eq_ignore_ascii_case("none") => {
            Err(TelemetryError::Compression { variable, compression })
        }
        _ => Ok(()),
    }
}

/// Checks that the sampler that is asked for is one that there is. The SDK would take every trace instead.
fn check_sampler() -> Result<(), TelemetryError> {
    let given =
        |variable: &'static str| Some((variable, env::var(variable).ok()?)).filter(|(_, value)| !value.is_empty());
    let Some((variable, value)) = given("OTEL_TRACES_SAMPLER") else { return Ok(()) };
    match &*value {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => Ok(()),
        "traceidratio" | "parentbased_traceidratio" => {
            let (variable, value) =
                given("OTEL_TRACES_SAMPLER_ARG").unwrap_or(("OTEL_TRACES_SAMPLER_ARG", String::new()));
            match value.parse::<f64>() {
                Ok(part) if (0.0..=1.0).contains(&part) => Ok(()),
                _ => Err(TelemetryError::Part { variable, value }),
            }
        }
        _ => Err(TelemetryError::Sampler { variable, value }),
    }
}

/// Who tells: this program, unless the environment says otherwise, in `OTEL_RESOURCE_ATTRIBUTES` or, before that, in `OTEL_SERVICE_NAME`.
fn resource(service_name: &str, version: &str) -> Resource {
    let own = [("service.name", service_name), ("service.version", version)];
    let resource = Resource::builder_empty()
        .with_attributes(own.map(|(key, value)| KeyValue::new(key, value.to_owned())))
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}
