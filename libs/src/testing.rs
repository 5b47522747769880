//! What tests of services say and hear over the wire.

use tonic::{Code, Request, Response, Status};

use crate::{
    cqrs::CONSISTENCY_TOKEN,
    refusal::Refusal,
    rpc::verdict::{Op, SagaCall, Verdict},
};

/// A query that sees what a command did.
///
/// # Panics
/// When the command answered no consistency token.
pub fn after<R, Q>(reply: &Response<R>, query: Q) -> Request<Q> {
    let token = reply.metadata().get(CONSISTENCY_TOKEN).expect("every command answers a token").clone();
    let mut request = Request::new(query);
    request.metadata_mut().insert(CONSISTENCY_TOKEN, token);
    request
}

/// A call as one operation of a step of saga `saga-1`.
pub fn in_saga<Q>(op: Op, message: Q) -> Request<Q> {
    let [saga_id, saga_type, step] = ["saga-1", "a-saga", "a-step"].map(str::to_owned);
    let call = SagaCall {
        saga_id,
        saga_type,
        step,
        op,
        attempt: 1,
        round: 1,
        deadline_micros: 0,
        expires_micros: 0,
        request: None,
    };
    let mut request = Request::new(message);
    call.write_to(request.metadata_mut());
    request
}

/// What a reply says became of a saga's operation.
pub fn verdict<R>(reply: &Result<Response<R>, Status>) -> Option<Verdict> {
    Verdict::from_metadata(match reply {
        Ok(response) => response.metadata(),
        Err(status) => status.metadata(),
    })
}

/// A refusal's code and reason.
///
/// # Panics
/// When it was granted.
#[track_caller]
pub fn refused<R>(reply: Result<Response<R>, Status>) -> (Code, String) {
    let Err(status) = reply else { panic!("it was granted") };
    (status.code(), Refusal::from_status(&status).reason.into_owned())
}

/// The fields that a refusal names.
///
/// # Panics
/// When it was granted, or refused for something else.
#[track_caller]
pub fn wrong_fields<R>(reply: Result<Response<R>, Status>) -> Vec<String> {
    let Err(status) = reply else { panic!("it was granted") };
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    Refusal::from_status(&status).violations.into_iter().map(|violation| violation.field).collect()
}
