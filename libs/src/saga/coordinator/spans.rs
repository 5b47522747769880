//! A saga in traces: a span for each stretch of it that a process drives, and in it one for each call.
//!
//! The first stretch belongs to the trace of the request that started the saga. A later one, after a restart or a takeover, may come
//! days after that trace has ended, so it is a trace of its own with a link to the first.

use tonic::Code;
use tracing::{Span, field::Empty, info_span};

use crate::{refusal::code_name, rpc::verdict::SagaCall, saga::record::Record, telemetry::propagation};

/// The stretch that begins now. None where nothing is traced.
pub(super) fn stretch(record: &Record, again: bool) -> Span {
    if !propagation::is_on() {
        return Span::none();
    }
    let saga = &record.saga;
    let span = info_span!(
        target: "libs::saga",
        parent: None,
        "saga",
        otel.name = format!("saga {}", saga.r#type),
        saga.id = saga.saga_id,
        saga.version = saga.version,
        saga.resumed = again,
    );
    match again {
        false => propagation::resume(&span, &record.kept.traceparent),
        true => propagation::link(&span, &record.kept.traceparent),
    }
    span
}

/// A call within a stretch. What is called continues its trace.
pub(super) fn call(stretch: &Span, path: &str, call: &SagaCall) -> Span {
    if stretch.is_none() {
        return Span::none();
    }
    let method = path.trim_start_matches('/');
    info_span!(
        target: "libs::saga",
        parent: stretch,
        "call",
        otel.name = method,
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        saga.step = call.step,
        saga.operation = call.op.as_str(),
        saga.attempt = call.attempt,
        rpc.response.status_code = Empty,
    )
}

/// Notes what a call came to, whether it left or not.
pub(super) fn ended(call: &Span, code: Code) {
    propagation::end_span(call, code_name(code), code != Code::Ok);
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use opentelemetry::trace::{SpanKind, Status as Outcome, TracerProvider as _};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tonic::{Status, metadata::MetadataMap};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::{
        super::{
            Coordinator,
            call::{Call, Known},
            sub_sagas::tests::Out,
        },
        *,
    };
    use crate::{
        breaker::{CircuitOpen, Reason},
        journal::Journal,
        rpc::verdict::{Op, Verdict},
        saga::{Definition, Operation, Options, Transport, machine::Due, transport::Attempt},
    };

    const PATH: &str = "pay.v1.Pay/Charge";

    struct Pay;

    impl Operation for Pay {
        const PEER: &'static str = "payment";
        const PATH: &'static str = "/pay.v1.Pay/Charge";
        type Request = i64;
        type Reply = i64;
    }

    /// Answers every call the same.
    struct Says(Result<MetadataMap, Status>);

    impl Transport for Says {
        fn call(&self, _: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
            let answer = self.0.clone().map(|metadata| (Bytes::new(), metadata));
            Box::pin(async { answer })
        }
    }

    /// Of a call that is answered so, or has no turn to leave: what its span says it came to, and whether that is a fault.
    async fn told(answer: Option<Result<MetadataMap, Status>>) -> (String, bool) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _collected = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

        let mut saga = Definition::builder::<i64>("test", 1);
        saga.pivot::<Pay>("pay", |input, _| Ok(*input));
        if answer.is_none() {
            // It waits for its turn no longer than for an answer.
            saga.without_barrier();
        }
        let definition = saga.build().unwrap();
        let options = Options { most_calls: 1, ..Options::default() };
        let (journal, _committer) = Journal::simulated(Arc::<Out>::default()).await.unwrap();
        let transport = Says(answer.clone().unwrap_or_else(|| Ok(MetadataMap::new())));
        let Coordinator(shared) = Coordinator::new(journal, [], transport, options).unwrap();
        let _taken = answer.is_none().then(|| shared.calls.try_acquire().unwrap());
        let record = definition.plan.new_record("saga", Vec::new(), 0, 0);
        let call = Call::new(&shared, &definition, &record, Due { step: 0, op: Op::Action }, 1, Known::default());
        call.run(&info_span!(target: "libs::saga", "saga")).await;

        let spans = exporter.get_finished_spans().unwrap();
        let call = spans.iter().find(|span| span.span_kind == SpanKind::Client).unwrap();
        let said = |key: &str| {
            let found = call.attributes.iter().find(|said| said.key.as_str() == key);
            found.map(|said| said.value.to_string()).unwrap_or_default()
        };
        assert_eq!([&*call.name, &said("rpc.method"), &said("rpc.system.name")], [PATH, PATH, "grpc"]);
        (said("rpc.response.status_code"), matches!(call.status, Outcome::Error { .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_calls_span_says_what_it_came_to_whether_it_left_or_not() {
        let mut applied = MetadataMap::new();
        Verdict::Applied.write_to(&mut applied);
        let (breaker, retry_after) = ("payment".into(), Duration::from_secs(1));
        let open = CircuitOpen { breaker, reason: Reason::Open, retry_after, cause: None, generation: 1 };
        let [done, refused, astray, held_back, no_turn] = [
            told(Some(Ok(applied))).await,
            told(Some(Err(Status::not_found("nobody")))).await,
            told(Some(Ok(MetadataMap::new()))).await,
            told(Some(Err(open.into_status()))).await,
            told(None).await,
        ];
        let fault = |code: &str| (code.to_owned(), true);
        assert_eq!(done, ("OK".to_owned(), false));
        assert_eq!([refused, astray], [fault("NOT_FOUND"), fault("UNKNOWN")]);
        assert_eq!([held_back, no_turn], [fault("UNAVAILABLE"), fault("RESOURCE_EXHAUSTED")], "they never left");
    }
}
