//! Calls to peers as a metric and as spans, where anybody collects them: what a caller waits for, every attempt together.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::Span;

use super::timeout::into_status;
use crate::{
    breaker::{
        is_draining,
        layer::{BoxError, grpc_status},
    },
    refusal::code_name,
    rpc::verdict::SAGA_ID,
    telemetry::{ClientMetrics, propagation},
};

/// A call under way. Dropped before its end is known, nobody waits for it any more.
#[derive(Debug)]
struct Call {
    metrics: Option<ClientMetrics>,
    peer: Arc<str>,
    path: String,
    span: Span,
    begin: Instant,
    code: Code,
    /// Its server ended it in order: a stream that has no end of its own.
    drained: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        let (method, code) = (self.path.trim_start_matches('/'), code_name(self.code));
        if let Some(metrics) = &self.metrics {
            metrics.record(&self.peer, method, code, self.begin.elapsed());
        }
        propagation::end_span(&self.span, code, self.code != Code::Ok && !self.drained);
    }
}

pin_project! {
    /// A call that is measured, or only made where nobody wants to know.
    #[derive(Debug)]
    pub struct Measured<T> {
        #[pin]
        inner: T,
        call: Option<Box<Call>>,
    }
}

impl<T> Measured<T> {
    /// Makes a call. What it carries of its trace is its own span; a saga's call has one already.
    pub(super) fn call<B>(
        metrics: Option<&ClientMetrics>,
        peer: &Arc<str>,
        request: Request<B>,
        send: impl FnOnce(Request<B>) -> T,
    ) -> Self {
        let path = request.uri().path();
        let has_none = propagation::is_on() && !request.headers().contains_key(&SAGA_ID);
        let span = if has_none { propagation::client_span(path.trim_start_matches('/')) } else { Span::none() };
        if metrics.is_none() && span.is_none() {
            return Self { inner: send(request), call: None };
        }
        let (peer, path, begin) = (Arc::clone(peer), path.to_owned(), Instant::now());
        let inner = span.in_scope(|| send(request));
        let call = Call { metrics: metrics.cloned(), peer, path, span, begin, code: Code::Cancelled, drained: false };
        Self { inner, call: Some(Box::new(call)) }
    }
}

/// The end of a call is known.
fn end(call: &mut Option<Box<Call>>, code: Code) {
    if let Some(mut call) = call.take() {
        call.code = code;
    }
}

impl<F, B> Future for Measured<F>
where
    F: Future<Output = Result<Response<B>, Status>>,
{
    type Output = Result<Response<Measured<B>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = match this.call {
            Some(call) => ready!(call.span.in_scope(|| this.inner.poll(cx))),
            None => ready!(this.inner.poll(cx)),
        };
        // A status among the headers is the whole answer.
        match &answered {
            Err(status) => end(this.call, status.code()),
            Ok(response) => grpc_status(response.headers()).into_iter().for_each(|code| end(this.call, code)),
        }
        let call = this.call.take();
        Poll::Ready(answered.map(|response| response.map(|inner| Measured { inner, call })))
    }
}

impl<B: Body<Error = BoxError>> Body for Measured<B> {
    type Data = B::Data;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Status>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx)).map(|frame| frame.map_err(into_status));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = grpc_status(trailers).unwrap_or(Code::Unknown);
                    if let Some(call) = this.call
                        && code == Code::Unavailable
                    {
                        call.drained = Status::from_header_map(trailers).is_some_and(|status| is_draining(&status));
                    }
                    end(this.call, code);
                }
            }
            Some(Err(status)) => end(this.call, status.code()),
            None => end(this.call, Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use opentelemetry::metrics::MeterProvider as _;
    use opentelemetry_sdk::metrics::{
        InMemoryMetricExporter, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    };

    use super::*;

    type Frames = Vec<Result<Frame<&'static [u8]>, BoxError>>;

    fn trailers(code: &str) -> Frame<&'static [u8]> {
        Frame::trailers(http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]))
    }

    /// The codes that calls were counted under.
    fn codes(exporter: &InMemoryMetricExporter) -> Vec<String> {
        let finished = exporter.get_finished_metrics().unwrap();
        let metrics = finished.iter().flat_map(|of| of.scope_metrics()).flat_map(|scope| scope.metrics());
        let points = metrics.flat_map(|metric| match metric.data() {
            AggregatedMetrics::F64(MetricData::Histogram(calls)) => calls
                .data_points()
                .map(|point| {
                    let code = point.attributes().find(|pair| pair.key.as_str() == "rpc.response.status_code");
                    format!("{} {}", point.count(), code.unwrap().value)
                })
                .collect(),
            _ => Vec::new(),
        });
        let mut codes: Vec<_> = points.collect();
        codes.sort();
        codes
    }

    #[tokio::test]
    async fn each_call_is_counted_once_by_how_it_ended() {
        let exporter = InMemoryMetricExporter::default();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter.clone()).build();
        let (metrics, peer) = (ClientMetrics::of(&provider.meter("tea")), Arc::from("tea"));
        let request = || Request::builder().uri("http://tea:1/tea.v1.Tea/Brew").body(()).unwrap();
        let answer = |frames: Frames| {
            let body = StreamBody::new(stream::iter(frames));
            Measured::call(Some(&metrics), &peer, request(), |_| ready(Ok(Response::new(body))))
        };
        let data = || Ok(Frame::data(&b"tea"[..]));
        let ok = answer(vec![data(), Ok(trailers("0"))]).await.unwrap();
        ok.into_body().collect().await.unwrap();
        let refused = answer(vec![Ok(trailers("9"))]).await.unwrap();
        refused.into_body().collect().await.unwrap();
        let broken = answer(vec![data(), Err(Status::data_loss("cut off").into())]).await.unwrap();
        broken.into_body().collect().await.unwrap_err();
        // A status among the headers; an error in place of an answer; nobody waits for one.
        let response =
            Response::builder().header("grpc-status", "5").body(StreamBody::new(stream::iter(Frames::new())));
        let headers = Measured::call(Some(&metrics), &peer, request(), |_| ready(Ok(response.unwrap()))).await;
        headers.unwrap().into_body().collect().await.unwrap();
        type Answer = Result<
            Response<StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<&'static [u8]>, BoxError>>>>>,
            Status,
        >;
        let away: Answer = Err(Status::unavailable("away"));
        Measured::call(Some(&metrics), &peer, request(), |_| ready(away)).await.unwrap_err();
        drop(Measured::call(Some(&metrics), &peer, request(), |_| pending::<Answer>()));
        drop(answer(vec![data(), Ok(trailers("0"))]).await.unwrap());
        provider.force_flush().unwrap();
        let counted = ["1 DATA_LOSS", "1 FAILED_PRECONDITION", "1 NOT_FOUND", "1 OK", "1 UNAVAILABLE", "2 CANCELLED"];
        assert_eq!(codes(&exporter), counted);
    }
}
