//! Operations for a definition's steps.

/// Operations that take and answer a number.
macro_rules! operations {
    ($($name:ident $path:literal $(undone by $undo:ident)?;)*) => { $(
        struct $name;
        impl Operation for $name {
            const PEER: &'static str = "peer";
            const PATH: &'static str = $path;
            type Request = i64;
            type Reply = i64;
        }
        $(impl Compensated for $name { type Compensation = $undo; })?
    )* };
}

pub(crate) use operations;
