//! What a result says about the peer.

/// What one call's result says about the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The peer answered in time, be it with a refusal.
    Success,
    /// The peer is broken, gone or too late.
    Failure,
    /// The peer said that it has too much to do. It counts in the rate and fails a probe, but is no failure in a row; the
    /// pause it asks for lengthens the open time.
    Overload,
    /// Says nothing about the peer: the caller left, or something of ours refused the call.
    Neutral,
}

impl Class {
    /// Whether it counts against the peer in the rate.
    pub(crate) const fn counts_against(self) -> bool {
        matches!(self, Self::Failure | Self::Overload)
    }

    /// What is left of it where nothing counts against the peer.
    pub(super) const fn excused(self) -> Self {
        if self.counts_against() { Self::Neutral } else { self }
    }
}
