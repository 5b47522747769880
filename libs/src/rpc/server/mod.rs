//! What every call passes on its way to a surface, and every answer on its way out.
//!
//! ```text
//! call ─▶ observe ─▶ catch ─▶ headers ─▶ shed ─▶ deadline ─▶ guard ─▶ malformed ─▶ surface
//!         │          │        │          │       │           │        └ refuses a message that is too large, or can't be read
//!         │          │        │          │       │           └ who may not call is refused: what `App::guard` was given
//!         │          │        │          │       └ ends what takes too long with DEADLINE_EXCEEDED, and hands its deadline down
//!         │          │        │          └ what finds no place is RESOURCE_EXHAUSTED at once, with when to come back
//!         │          │        └ a header list that is too long is OUT_OF_RANGE
//!         │          └ a panic is INTERNAL, and only this call's
//!         └ trace, request id, log, metric; details on every error; ends endless streams when the server drains
//! ```

mod body;
mod call;
mod catch;
mod deadline;
mod details;
mod guard;
mod malformed;
mod methods;
mod observe;

pub(super) use self::methods::shown;
pub use self::{
    body::ServerBody,
    call::Ending,
    catch::{Catch, CatchFuture, CatchLayer},
    deadline::{Deadline, DeadlineFuture, DeadlineLayer},
    guard::{GuardLayer, Guarded},
    malformed::{Malformed, MalformedFuture, MalformedLayer},
    methods::Methods,
    observe::{Observe, ObserveFuture, ObserveLayer},
};
