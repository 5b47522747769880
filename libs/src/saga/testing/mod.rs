//! For tests of one's own sagas: participants that exist in memory, and everything that a saga must come through.
//!
//! A [`Rig`] runs a saga again and again, each time from nothing on a real journal, each time disturbed in another way:
//! [`fail_every_step`] refuses each step's call once, [`repeat_every_operation`] delivers each call twice and loses each request and each
//! answer once, [`crash_every_point`] ends the process around every call, on the way there and on the way back. After each run the
//! same rules are checked: nothing took effect twice, what was done is whole or undone in reverse, and the end is the one that an
//! undisturbed saga comes to.
//!
//! ```
//! # use libs::saga::{Compensated, Definition, LocalWork, Operation};
//! # macro_rules! operation { ($name:ident) => { struct $name; impl Operation for $name {
//! #     const PEER: &'static str = "peer"; const PATH: &'static str = concat!("/p.v1.S/", stringify!($name));
//! #     type Request = String; type Reply = String; } } }
//! # operation!(ReserveSeat); operation!(ReleaseSeat); operation!(Pay);
//! # impl Compensated for ReserveSeat { type Compensation = ReleaseSeat; }
//! use libs::saga::testing::{Participants, Rig, crash_every_point, fail_every_step, repeat_every_operation};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut saga = Definition::builder::<String>("book-seat", 1);
//! saga.compensatable::<ReserveSeat>("reserve_seat", |seat, _| Ok(seat.clone()), |undo| undo.input.clone());
//! saga.pivot::<Pay>("pay", |seat, _| Ok(seat.clone()));
//! saga.retriable_local("finish", |_, _| Ok(LocalWork::nothing()));
//!
//! let folder = tempfile::tempdir()?;
//! let rig = Rig::new(folder.path(), saga.build()?, "12C".to_owned(), Participants::new);
//! println!("{}", fail_every_step(&rig).await?);
//! println!("{}", repeat_every_operation(&rig).await?);
//! println!("{}", crash_every_point(&rig).await?);
//! # Ok(()) }
//! ```

mod participants;
mod rig;
mod rules;
mod trials;

pub use self::{
    participants::{Call, Effect, Fault, Participants},
    rig::{Begun, Rig},
    rules::Broken,
    trials::{Report, crash_every_point, fail_every_step, repeat_every_operation},
};
