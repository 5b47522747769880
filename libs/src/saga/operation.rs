//! What a step calls: a gRPC method as a type, and the pairs that undo each other.

use prost::Message;

/// A command of a participant. The order service has one generated for every command of its participants.
pub trait Operation: Send + Sync + 'static {
    /// The participant: a peer's name, such as `inventory`.
    const PEER: &'static str;
    /// The method, such as `/inventory.v1.InventoryCommandService/ReserveStock`.
    const PATH: &'static str;
    /// What is asked.
    type Request: Message + Default;
    /// What is answered.
    type Reply: Message + Default;
}

/// A command that another one of the same participant undoes: it alone remembers whether there is something to undo. Where a third one does
/// today, a definition of before names the pair by a type of its own that has this one's `PEER` and `PATH`: open sagas know it by those.
pub trait Compensated: Operation {
    /// The one that undoes it. With another `PEER` no definition is built.
    type Compensation: Operation;
}

/// Operations of tests, that take and answer a number.
#[cfg(test)]
macro_rules! operations {
    ($($name:ident $(undone by $undo:ident)?;)*) => { $(
        struct $name;
        impl $crate::saga::Operation for $name {
            const PEER: &'static str = "peer";
            const PATH: &'static str = concat!("/test.v1.Test/", stringify!($name));
            type Request = i64;
            type Reply = i64;
        }
        $(impl $crate::saga::Compensated for $name { type Compensation = $undo; })?
    )* };
}

#[cfg(test)]
pub(super) use operations;
