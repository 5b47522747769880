//! The outermost layer: every call is seen to its end, whatever becomes of it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    Methods, ServerBody,
    call::{Call, Ending, Quiet, Shared},
};
use crate::{breaker::layer::grpc_status, rpc::shed, telemetry::ServerMetrics};

/// Traces, logs and measures calls, completes their errors, and ends their streams when their connection does.
#[derive(Clone, Debug)]
pub struct ObserveLayer(Arc<Shared>);

impl ObserveLayer {
    /// A layer for the service of this bare name, which serves these methods on a connection whose end comes as `ending` says.
    #[must_use]
    pub fn new(
        service: &'static str,
        metrics: Option<ServerMetrics>,
        methods: Methods,
        ending: watch::Receiver<Ending>,
    ) -> Self {
        Self(Arc::new(Shared { service, metrics, methods, ending }))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, shared: Arc::clone(&self.0) }
    }
}

/// The service that [`ObserveLayer`] makes.
#[derive(Clone, Debug)]
pub struct Observe<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<Body>> for Observe<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<ServerBody<B>>;
    type Error = Infallible;
    type Future = ObserveFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ObserveFuture<S::Future> {
        let call = Call::new(Arc::clone(&self.shared), &request);
        let inner = call.scope(|| self.inner.call(request));
        ObserveFuture { inner, call: Some(call) }
    }
}

pin_project! {
    /// The future that [`Observe`] makes.
    #[derive(Debug)]
    pub struct ObserveFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
    }
}

impl<F: Future<Output = Result<Response<B>, Infallible>>, B> Future for ObserveFuture<F> {
    type Output = Result<Response<ServerBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.call {
            Some(call) => ready!(call.scope(|| this.inner.poll(cx))),
            None => ready!(this.inner.poll(cx)),
        };
        let Ok(mut response) = response;
        let Some(mut call) = this.call.take() else { return Poll::Ready(Ok(response.map(ServerBody::finished))) };
        call.quiet = shed::was_shed(&response).then_some(Quiet::Shed);
        // A status among the headers is the whole answer: tonic sends the errors of unary calls so.
        if grpc_status(response.headers()).is_some() {
            call.finish(response.headers_mut());
            return Poll::Ready(Ok(response.map(ServerBody::finished)));
        }
        Poll::Ready(Ok(response.map(|body| ServerBody::watched(body, call))))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        future::{pending, ready},
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use bytes::Bytes;
    use futures::stream;
    use http_body::Frame;
    use http_body_util::{BodyExt as _, StreamBody};
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::{
        InMemoryMetricExporter, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    };
    use parking_lot::Mutex;
    use tonic::Status;
    use tower::service_fn;
    use tracing::{Event, Level, Subscriber};
    use tracing_subscriber::layer::{self, SubscriberExt as _};

    use super::*;
    use crate::{breaker::is_draining, refusal::Refusal, rpc::shed::ShedLayer};

    /// Counts warnings.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicUsize>);

    impl<S: Subscriber> layer::Layer<S> for Warnings {
        fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
            self.0.fetch_add(usize::from(*event.metadata().level() == Level::WARN), Ordering::Relaxed);
        }
    }

    /// Keeps the methods that lines name.
    #[derive(Clone, Default)]
    struct Named(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> layer::Layer<S> for Named {
        fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                if field.name() == "method" {
                    self.0.lock().push(format!("{value:?}"));
                }
            });
        }
    }

    fn call(path: &str) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().expect("a path");
        request
    }

    /// What calls were counted under, by this name.
    fn attributes(exporter: &InMemoryMetricExporter, name: &str) -> BTreeSet<String> {
        let finished = exporter.get_finished_metrics().expect("kept");
        let metrics = finished.iter().flat_map(|of| of.scope_metrics()).flat_map(|scope| scope.metrics());
        let attributes = metrics.flat_map(|metric| match metric.data() {
            AggregatedMetrics::F64(MetricData::Histogram(calls)) => {
                calls.data_points().flat_map(|point| point.attributes().cloned().collect::<Vec<_>>()).collect()
            }
            _ => Vec::new(),
        });
        attributes.filter(|pair| pair.key.as_str() == name).map(|pair| pair.value.to_string()).collect()
    }

    #[tokio::test]
    async fn a_stream_that_is_ended_in_order_is_no_failure() {
        let warnings = Warnings::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        let (drain, draining) = watch::channel(Ending::NotYet);
        let endless = || Body::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>()));
        let watching = service_fn(|_: Request<Body>| ready(Ok(Response::new(endless()))));
        let mut server = ObserveLayer::new("tea", None, Methods::new([], []), draining).layer(watching);
        let answer = server.call(call("/tea.v1.Tea/WatchTea")).await.expect("an answer");
        drain.send_replace(Ending::Streams);
        let ended = answer.into_body().collect().await.expect("an end").trailers().cloned().expect("trailers");
        let status = Status::from_header_map(&ended).expect("a status");
        assert!(is_draining(&status), "{status:?}");
        assert_eq!(warnings.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_was_cancelled_by_its_client_unless_the_server_has_cut_it_off() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        let warnings = Warnings::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        let metrics = ServerMetrics::of(&provider.meter("tea"));
        let (end, ending) = watch::channel(Ending::NotYet);
        let brewing = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let served = Methods::new([("tea.v1.Tea/Brew".to_owned(), false)], []);
        let mut server = ObserveLayer::new("tea", Some(metrics), served, ending).layer(brewing);
        for (now, code, told) in
            [(Ending::NotYet, "CANCELLED", 0), (Ending::Streams, "CANCELLED", 0), (Ending::Cut, "UNAVAILABLE", 1)]
        {
            end.send_replace(now);
            drop(server.call(call("/tea.v1.Tea/Brew")));
            provider.force_flush().expect("exported");
            assert!(attributes(&exporter, "rpc.response.status_code").contains(code), "{now:?}");
            assert_eq!(warnings.0.load(Ordering::Relaxed), told, "{now:?}");
            exporter.reset();
        }
    }

    #[tokio::test]
    async fn a_strangers_path_is_no_longer_in_a_line_than_a_line_is() {
        let named = Named::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(named.clone()));
        let (_draining, draining) = watch::channel(Ending::NotYet);
        let brewing = service_fn(|call: Request<Body>| async move {
            if call.uri().path().ends_with("Brew") {
                pending::<()>().await;
            }
            Ok(Status::internal("too long").into_http::<Body>())
        });
        let shed = ShedLayer::new("tea", 1, Duration::from_secs(1)).layer(brewing);
        let mut server = ObserveLayer::new("tea", None, Methods::new([], []), draining).layer(shed);
        let long = format!("/{}", "x".repeat(20 << 10));
        server.call(call(&long)).await.expect("an answer");
        let _brewing = server.call(call("/tea.v1.Tea/Brew"));
        server.call(call(&long)).await.expect("an answer");
        let named = named.0.lock();
        assert_eq!(named.len(), 3, "failed, shed, and told of as such");
        assert!(named.iter().all(|method| (200..300).contains(&method.len())), "{named:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_calls_that_are_shed_floods_neither_the_log_nor_the_metrics() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        let warnings = Warnings::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        let metrics = ServerMetrics::of(&provider.meter("tea"));
        let served = Methods::new([("tea.v1.Tea/Brew".to_owned(), false)], []);
        let (_draining, draining) = watch::channel(Ending::NotYet);
        let brewing = service_fn(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
        let shed = ShedLayer::new("tea", 1, Duration::from_secs(1)).layer(brewing);
        let mut server = ObserveLayer::new("tea", Some(metrics), served, draining).layer(shed);

        let _brewing = server.call(call("/tea.v1.Tea/Brew"));
        for second in 1..=2 {
            for at in 0..50 {
                server.call(call(&format!("/tea.v1.Tea/Brew{at}"))).await.expect("an answer");
                server.call(call("/tea.v1.Tea/Brew")).await.expect("an answer");
            }
            assert_eq!(warnings.0.load(Ordering::Relaxed), second, "one a second");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        provider.force_flush().expect("exported");
        assert_eq!(attributes(&exporter, "rpc.method").into_iter().collect::<Vec<_>>(), ["_OTHER", "tea.v1.Tea/Brew"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_calls_that_find_no_room_behind_the_door_floods_no_log_and_others_have_their_lines() {
        let warnings = Warnings::default();
        let _lines = tracing::subscriber::set_default(tracing_subscriber::registry().with(warnings.clone()));
        let (_draining, draining) = watch::channel(Ending::NotYet);
        let brewing = service_fn(|call: Request<Body>| {
            let refusal = match call.uri().path() {
                "/tea.v1.Tea/Brew" => Refusal::exhausted("COMMAND_QUEUE_FULL", "try again", Duration::from_millis(250)),
                _ => Refusal::internal(),
            };
            ready(Ok(refusal.into_status("tea").into_http::<Body>()))
        });
        let shed = ShedLayer::new("tea", 1, Duration::from_secs(1)).layer(brewing);
        let mut server = ObserveLayer::new("tea", None, Methods::new([], []), draining).layer(shed);
        for second in 1..=2 {
            for _ in 0..50 {
                server.call(call("/tea.v1.Tea/Brew")).await.expect("an answer");
            }
            server.call(call("/tea.v1.Tea/Spill")).await.expect("an answer");
            assert_eq!(warnings.0.load(Ordering::Relaxed), second * 2, "one a second, and of each that has failed");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
