//! A coordinator's sagas as OpenTelemetry metrics.
//!
//! `docs/operations.md` has them in a table.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use proto::saga::v1::{Saga, SagaPhase, StepState};
use tonic::Code;

use super::machine::Due;
use crate::{
    refusal::code_name,
    rpc::verdict::{Op, SagaCall},
};

/// Calls mostly take milliseconds, and a participant that is pending a while.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Steps take as long as their calls, or as long as a participant is out.
const STEP_SECONDS: [f64; 14] =
    [0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 86_400.0];

/// What a coordinator counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    phases: Arc<[AtomicI64; PHASES.len()]>,
    /// Empty where nobody collects metrics, so that nothing is spent on them.
    instruments: OnceLock<Instruments>,
}

#[derive(Debug)]
struct Instruments {
    ended: Counter<u64>,
    calls: Histogram<f64>,
    steps: Histogram<f64>,
    retries: Counter<u64>,
}

/// The phases of a saga that is driven.
const PHASES: [(SagaPhase, &str); 4] = [
    (SagaPhase::Scheduled, "scheduled"),
    (SagaPhase::Forward, "forward"),
    (SagaPhase::Compensating, "compensating"),
    (SagaPhase::Stuck, "stuck"),
];

impl Metrics {
    /// Has it all observed by a meter; `parked` says how many are, `orphans` how many wait for a place.
    pub(super) fn observe(
        &self,
        meter: &Meter,
        parked: impl Fn() -> u64 + Send + Sync + 'static,
        orphans: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let phases = Arc::clone(&self.phases);
        // The instruments live as long as their meter's provider; these handles are not needed.
        let _driven = meter
            .i64_observable_gauge("saga.driven")
            .with_unit("{saga}")
            .with_description("Sagas that this process drives now.")
            .with_callback(move |observer| {
                for ((_, name), count) in PHASES.iter().zip(phases.iter()) {
                    observer.observe(count.load(Ordering::Relaxed), &[KeyValue::new("saga.phase", *name)]);
                }
            })
            .build();
        let _parked = meter
            .u64_observable_gauge("saga.parked")
            .with_unit("{saga}")
            .with_description("Sagas that can't be driven here and are left as they are.")
            .with_callback(move |observer| observer.observe(parked(), &[]))
            .build();
        let _orphans = meter
            .u64_observable_gauge("saga.orphans")
            .with_unit("{saga}")
            .with_description("Sagas whose process is gone and for which no place is free here.")
            .with_callback(move |observer| observer.observe(orphans(), &[]))
            .build();
        let instruments = || Instruments {
            ended: meter
                .u64_counter("saga.ended")
                .with_unit("{saga}")
                .with_description("Sagas that have ended.")
                .build(),
            calls: meter
                .f64_histogram("saga.call.duration")
                .with_unit("s")
                .with_description("How long each call of a step took.")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            steps: meter
                .f64_histogram("saga.step.duration")
                .with_unit("s")
                .with_description("How long a step took that was done or undone, retries and waits included.")
                .with_boundaries(STEP_SECONDS.to_vec())
                .build(),
            retries: meter
                .u64_counter("saga.retries")
                .with_unit("{call}")
                .with_description("Calls that were made again.")
                .build(),
        };
        self.instruments.get_or_init(instruments);
    }

    /// A saga is in another phase, or begins or ends to be driven.
    pub(super) fn moved(&self, from: Option<SagaPhase>, to: Option<SagaPhase>) {
        if from == to {
            return;
        }
        for (phase, change) in [(from, -1), (to, 1)] {
            let place = PHASES.iter().position(|(driven, _)| Some(*driven) == phase);
            if let Some(count) = place.and_then(|place| self.phases.get(place)) {
                count.fetch_add(change, Ordering::Relaxed);
            }
        }
    }

    /// A saga has ended.
    pub(super) fn ended(&self, saga_type: &str, phase: SagaPhase) {
        let Some(instruments) = self.instruments.get() else { return };
        let phase = match phase {
            SagaPhase::Completed => "completed",
            SagaPhase::Compensated => "compensated",
            _ => "force_closed",
        };
        let attributes = [KeyValue::new("saga.type", saga_type.to_owned()), KeyValue::new("saga.phase", phase)];
        instruments.ended.add(1, &attributes);
    }

    /// A step that others take may have been done, or undone.
    pub(super) fn stepped(&self, saga: &Saga, due: Due) {
        let (Some(instruments), Some(step)) = (self.instruments.get(), saga.steps.get(due.step)) else { return };
        let (end, took) = match due.op {
            Op::Action => (StepState::Done, step.action_duration),
            Op::Compensation => (StepState::Compensated, step.compensation_duration),
        };
        // Else its answer settled nothing, or an operator had settled it before.
        if let (true, Some(Ok(took))) = (step.state() == end, took.map(Duration::try_from)) {
            let attributes = [
                KeyValue::new("saga.type", saga.r#type.clone()),
                KeyValue::new("saga.step", step.name.clone()),
                KeyValue::new("saga.operation", due.op.as_str()),
            ];
            instruments.steps.record(took.as_secs_f64(), &attributes);
        }
    }

    /// A call was answered, or given up.
    pub(super) fn called(&self, call: &SagaCall, code: Code, took: Duration) {
        let Some(instruments) = self.instruments.get() else { return };
        let attributes = [
            KeyValue::new("saga.type", call.saga_type.clone()),
            KeyValue::new("saga.step", call.step.clone()),
            KeyValue::new("saga.operation", call.op.as_str()),
            KeyValue::new("rpc.response.status_code", code_name(code)),
        ];
        instruments.calls.record(took.as_secs_f64(), &attributes);
        if call.attempt > 1 {
            instruments.retries.add(1, &attributes[..3]);
        }
    }
}
