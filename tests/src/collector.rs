//! Takes what services export over OTLP, and keeps it.

use std::{
    collections::{BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data},
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport};

/// A span that a service exported.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// The service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// Which of its processes, if that is said.
    pub instance: String,
    /// What it is called.
    pub name: String,
    /// The trace it belongs to.
    pub trace_id: Vec<u8>,
    /// Its own id.
    pub span_id: Vec<u8>,
    /// The span it is part of, empty for none.
    pub parent_id: Vec<u8>,
    /// The traces it points to.
    pub links: Vec<Vec<u8>>,
    /// What is said of it.
    pub attributes: HashMap<String, String>,
}

/// What a service measured: an instrument, and the keys of one point's attributes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Measured {
    /// The service, as the scope says.
    pub service: String,
    /// The metric.
    pub name: String,
    /// A counter, a gauge or a histogram.
    pub kind: &'static str,
    /// Its unit.
    pub unit: String,
    /// The keys.
    pub attributes: BTreeSet<String>,
}

/// A collector of spans and metrics.
#[derive(Clone, Debug)]
pub struct Collector {
    uri: String,
    spans: Arc<Mutex<Vec<Exported>>>,
    metrics: Arc<Mutex<BTreeSet<Measured>>>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts one at this address.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start_at(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let uri = format!("http://{}", listener.local_addr()?);
        let collector = Self { uri, spans: Arc::default(), metrics: Arc::default() };
        let server = transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(collector)
    }

    /// Where services are to send to.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The spans that have come so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Exported> {
        self.spans.lock().clone()
    }

    /// The metrics that have come so far.
    #[must_use]
    pub fn metrics(&self) -> BTreeSet<Measured> {
        self.metrics.lock().clone()
    }
}

fn texts(attributes: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    let pair = |pair: KeyValue| Some((pair.key, text(pair.value?.value?)));
    attributes.into_iter().filter_map(pair).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let resource = texts(of_service.resource.unwrap_or_default().attributes);
            let said = |key: &str| resource.get(key).cloned().unwrap_or_default();
            let (service, version) = (said("service.name"), said("service.version"));
            let instance = said("service.instance.id");
            let spans = of_service.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().extend(spans.map(|span| Exported {
                service: service.clone(),
                version: version.clone(),
                instance: instance.clone(),
                name: span.name,
                trace_id: span.trace_id,
                span_id: span.span_id,
                parent_id: span.parent_span_id,
                links: span.links.into_iter().map(|link| link.trace_id).collect(),
                attributes: texts(span.attributes),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes = request.into_inner().resource_metrics.into_iter().flat_map(|of_service| of_service.scope_metrics);
        for of_scope in scopes {
            let service = texts(of_scope.scope.unwrap_or_default().attributes).remove("service").unwrap_or_default();
            let measured = of_scope.metrics.into_iter().flat_map(|metric| measured(&service, metric));
            self.metrics.lock().extend(measured);
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// What a metric has measured, point by point.
fn measured(service: &str, metric: Metric) -> Vec<Measured> {
    let (kind, points): (_, Vec<Vec<KeyValue>>) = match metric.data {
        Some(Data::Gauge(gauge)) => ("gauge", gauge.data_points.into_iter().map(|point| point.attributes).collect()),
        Some(Data::Sum(sum)) => {
            let kind = if sum.is_monotonic { "counter" } else { "up-down counter" };
            (kind, sum.data_points.into_iter().map(|point| point.attributes).collect())
        }
        Some(Data::Histogram(histogram)) => {
            ("histogram", histogram.data_points.into_iter().map(|point| point.attributes).collect())
        }
        _ => ("another kind", Vec::new()),
    };
    let measured = |attributes: Vec<KeyValue>| Measured {
        service: service.to_owned(),
        name: metric.name.clone(),
        kind,
        unit: metric.unit.clone(),
        attributes: attributes.into_iter().map(|pair| pair.key).collect(),
    };
    points.into_iter().map(measured).collect()
}
