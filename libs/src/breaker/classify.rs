//! Which gRPC code says what about the peer.

use std::fmt;

use tonic::Code;

use super::Class;

/// A class for each of the seventeen codes, as one word.
///
/// A refusal that arrives in time (INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION…) shows a healthy peer. CANCELLED and
/// DEADLINE_EXCEEDED are judged by the deadline as well while they have their usual classes here. A call that its caller gives up at its
/// deadline has ended with DEADLINE_EXCEEDED, as one has of which its server says so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Classes(u64);

impl Classes {
    const BITS: u32 = 3;

    /// The class of a code.
    #[inline]
    #[must_use]
    pub const fn of(self, code: Code) -> Class {
        match self.0 >> (Self::BITS * code as u32) & 0b111 {
            0 => Class::Success,
            1 => Class::Failure,
            2 => Class::Overload,
            _ => Class::Neutral,
        }
    }

    /// The same with another class for one code.
    #[must_use]
    pub const fn with(self, code: Code, class: Class) -> Self {
        let at = Self::BITS * code as u32;
        Self(self.0 & !(0b111 << at) | (class as u64) << at)
    }
}

impl Default for Classes {
    fn default() -> Self {
        Self(0)
            .with(Code::Cancelled, Class::Neutral)
            .with(Code::Unknown, Class::Failure)
            .with(Code::DeadlineExceeded, Class::Failure)
            .with(Code::ResourceExhausted, Class::Overload)
            .with(Code::Internal, Class::Failure)
            .with(Code::Unavailable, Class::Failure)
            .with(Code::DataLoss, Class::Failure)
    }
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codes = (0..=16).map(Code::from_i32);
        f.debug_map().entries(codes.map(|code| (code, self.of(code)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_class_that_was_meant() {
        use Class::{Failure as F, Neutral as N, Overload as O, Success as S};
        let meant = [S, N, F, S, F, S, S, S, O, S, S, S, S, F, F, F, S];
        for (code, class) in (0..).zip(meant) {
            assert_eq!(Classes::default().of(Code::from_i32(code)), class, "{code}");
        }
    }

    #[test]
    fn one_code_can_be_changed_alone() {
        let classes = Classes::default().with(Code::Aborted, Class::Failure).with(Code::Unavailable, Class::Neutral);
        assert_eq!(classes.of(Code::Aborted), Class::Failure);
        assert_eq!(classes.of(Code::Unavailable), Class::Neutral);
        assert_eq!(classes.of(Code::DataLoss), Class::Failure);
        assert_eq!(classes.of(Code::OutOfRange), Class::Success);
    }
}
