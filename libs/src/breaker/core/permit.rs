//! Leave to make one call, and the duty to say how it went.

use std::{ops::Deref, time::Duration};

use super::{admission::NEVER, breaker::Breaker, class::Class, clock::nanos};

/// What a result will be used for. A whole word, so that a ticket has no gaps: a copy of a gap reads across what was just written,
/// and waits for it.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The window.
    Counted,
    /// The window, but for what ends badly.
    Excused,
    /// The window once more, after a commit: how long that which goes on takes says nothing.
    Committed,
    /// The half-open verdict.
    Probe,
    /// The half-open verdict, but for what ends badly.
    ExcusedProbe,
    /// The totals only: it would have been refused.
    Shadow,
    /// Nothing.
    Unseen,
    /// It has been told.
    Spent,
}

/// What a breaker remembers of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) started: u64,
    pub(super) deadline: u64,
    pub(super) generation: u32,
    pub(super) lease: u32,
    pub(super) role: Role,
}

impl Ticket {
    #[inline]
    pub(super) const fn counted(generation: u32, started: u64, deadline: u64) -> Self {
        Self { started, deadline, generation, lease: 0, role: Role::Counted }
    }

    pub(super) const fn probe(generation: u32, lease: u32, started: u64, deadline: u64) -> Self {
        Self { started, deadline, generation, lease, role: Role::Probe }
    }

    pub(super) const fn shadow(generation: u32, started: u64, deadline: u64) -> Self {
        Self { started, deadline, generation, lease: 0, role: Role::Shadow }
    }

    pub(super) const fn unseen() -> Self {
        Self { started: NEVER, deadline: NEVER, generation: 0, lease: 0, role: Role::Unseen }
    }

    /// The same, not timed.
    pub(super) const fn untimed(self) -> Self {
        Self { started: NEVER, ..self }
    }

    /// Whether the deadline has come, but for a small margin: whoever enforced it may have a finer clock.
    fn outlived(&self, now: u64) -> bool {
        if self.deadline == NEVER {
            return false;
        }
        now >= self.deadline - margin(self.deadline.saturating_sub(self.started))
    }

    /// Whether the deadline is over by as much again as there was until it, and by a second at least.
    fn overslept(&self, now: u64) -> bool {
        const LEAST: u64 = 1_000_000_000;
        let budget = self.deadline.saturating_sub(self.started);
        self.deadline != NEVER && now > self.deadline.saturating_add(budget.max(LEAST))
    }
}

/// How far apart this clock and that of whoever enforces a deadline may be about it, with so much time for the call.
pub(super) fn margin(budget: u64) -> u64 {
    const LEAST: u64 = 5_000_000;
    (budget / 20).max(LEAST).min(budget / 2)
}

/// Leave to make one call. Say how it went by [`Permit::finish`]; dropping it says that the call was abandoned.
#[derive(Debug)]
#[must_use = "a permit that is dropped counts as an abandoned call"]
pub struct Permit<B: Deref<Target = Breaker>> {
    breaker: B,
    ticket: Ticket,
}

impl<B: Deref<Target = Breaker>> Permit<B> {
    #[inline]
    pub(super) const fn new(breaker: B, ticket: Ticket) -> Self {
        Self { breaker, ticket }
    }

    /// The handle by which it keeps the breaker.
    pub const fn handle(&self) -> &B {
        &self.breaker
    }

    /// Tells how the call went.
    #[inline]
    pub fn finish(mut self, class: Class) {
        self.tell(class, None);
    }

    /// Has nothing count that the call ends badly with: no failure, no overload, and not how long it took. For a call that goes where
    /// calls do not go at present, such as to an address that is passed over while another one answers. That it went well counts.
    pub fn excuse(&mut self) {
        match self.ticket.role {
            Role::Counted => self.ticket.role = Role::Excused,
            Role::Probe => {
                self.breaker.excuse(&self.ticket);
                self.ticket.role = Role::ExcusedProbe;
            }
            _ => {}
        }
    }

    /// Tells how the call went, and how long the peer asked callers to stay away.
    pub fn finish_with_pause(mut self, class: Class, pause: Duration) {
        self.tell(class, Some(pause));
    }

    /// Tells that the call ended because its deadline came: a failure, unless it left with next to no time.
    pub fn finish_late(mut self) {
        let class = if self.blameless() { Class::Neutral } else { Class::Failure };
        self.tell(class, None);
    }

    /// Tells that the call was cancelled by someone. If its deadline has come that is the reason, whatever was said: gRPC
    /// implementations report deadlines as cancellations. Otherwise it says nothing about the peer.
    pub fn finish_cancelled(mut self) {
        let class = self.cancelled();
        self.tell(class, None);
    }

    /// Tells that its caller left when an answer had begun: it is judged as cancelled, and counted as abandoned.
    pub fn finish_left(mut self) {
        let class = self.cancelled();
        if !matches!(self.ticket.role, Role::Spent | Role::Unseen) {
            self.count_abandoned(class);
        }
        self.tell(class, None);
    }

    fn cancelled(&self) -> Class {
        let late = self.ticket.outlived(self.breaker.clock.now()) && !self.blameless();
        if late { Class::Failure } else { Class::Neutral }
    }

    /// Tells a first verdict about a call that goes on, such as a stream that works, and keeps the permit for a second
    /// one. A probe gives its lease back. Neither verdict is ever slow: it is for how long the call lasts, not for how long an
    /// answer took.
    pub fn commit(&mut self, class: Class) {
        let role = std::mem::replace(&mut self.ticket.role, Role::Spent);
        self.breaker.record(role, &self.ticket.untimed(), class, 0);
        if matches!(role, Role::Counted | Role::Excused | Role::Committed) {
            self.ticket.role = Role::Committed;
        }
    }

    /// Whether the call is a half-open circuit's probe.
    pub fn is_probe(&self) -> bool {
        matches!(self.ticket.role, Role::Probe | Role::ExcusedProbe)
    }

    /// Whether the call's deadline has come, but for a small margin: whoever keeps it may have a finer clock.
    pub fn is_late(&self) -> bool {
        self.ticket.outlived(self.breaker.clock.now())
    }

    /// Whether the call's deadline is over by as much time again as it had, and by a second at least. Who gives calls up when their deadlines
    /// come was stopped meanwhile, and how they ended says nothing of the peer.
    pub fn is_overslept(&self) -> bool {
        self.ticket.overslept(self.breaker.clock.now())
    }

    /// The breaker's generation in which the call left.
    pub const fn generation(&self) -> u32 {
        self.ticket.generation
    }

    /// For how long the call has been under way, if it is timed.
    pub fn elapsed(&self) -> Option<Duration> {
        (self.ticket.started != NEVER)
            .then(|| Duration::from_nanos(self.breaker.clock.now().saturating_sub(self.ticket.started)))
    }

    #[inline]
    fn tell(&mut self, class: Class, pause: Option<Duration>) {
        // Spent before it is told, so that a panic there does not tell it again. The ticket is read where it is: a copy in one
        // piece would wait for the words it was just written in.
        let role = std::mem::replace(&mut self.ticket.role, Role::Spent);
        self.breaker.record(role, &self.ticket, class, pause.map_or(0, nanos));
    }

    /// Whether the budget was so small that missing it is no fault of the peer's.
    fn blameless(&self) -> bool {
        let budget = self.ticket.deadline.saturating_sub(self.ticket.started);
        self.ticket.deadline != NEVER && budget < self.breaker.min_blame_nanos()
    }

    /// Judges a call that nobody waited for: by its deadline, else by how long it was under way.
    #[cold]
    fn abandon(&mut self) {
        let class = if std::thread::panicking() {
            Class::Failure
        } else if self.ticket.started == NEVER || self.blameless() {
            Class::Neutral
        } else {
            let now = self.breaker.clock.now();
            let elapsed = now.saturating_sub(self.ticket.started);
            let hung = elapsed >= self.breaker.abandon_nanos();
            if hung || self.ticket.outlived(now) { Class::Failure } else { Class::Neutral }
        };
        self.count_abandoned(class);
        self.tell(class, None);
    }

    fn count_abandoned(&self, class: Class) {
        let excused = matches!(self.ticket.role, Role::Excused | Role::ExcusedProbe);
        self.breaker.count_abandoned(if excused { class.excused() } else { class });
    }
}

impl<B: Deref<Target = Breaker>> Drop for Permit<B> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.ticket.role, Role::Spent | Role::Unseen) {
            self.abandon();
        }
    }
}
