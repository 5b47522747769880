//! May this call pass?

use std::{ops::Deref, time::Duration};

use super::{
    breaker::{Breaker, Cold},
    clock::nanos,
    half_open::Verdict,
    permit::{Permit, Ticket, margin},
    rules::Counts,
    state::{Cause, Override, State, Transition, Word},
    sync::{Ordering::SeqCst, lock},
};

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The circuit is open.
    Open,
    /// The circuit is half-open and its probes are out.
    HalfOpenSaturated,
    /// The circuit recovers and this call was not in the share that passes.
    Recovering,
    /// An operator forced it open.
    ForcedOpen,
    /// The circuit is closed, and more is asked of the peer than it accepts.
    Throttled,
}

/// A call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("circuit open")]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// When asking again may help.
    pub retry_after: Duration,
    /// The generation that refused.
    pub generation: u32,
}

/// No deadline, or no start.
pub(super) const NEVER: u64 = u64::MAX;
/// While an operator holds the circuit, probes are out or a ramp lets a share pass, asking again soon is all one can do.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Breaker {
    /// Asks whether a call may pass. The call's duration is watched only if a slow-call rule needs it.
    ///
    /// # Errors
    /// When it may not.
    #[inline]
    pub fn admit(&self) -> Result<Permit<&Self>, Rejected> {
        let word = Word::from_bits(self.hot.word.load(SeqCst));
        if word.plainly_closed() {
            let started = if self.hot.rules.times_calls() { self.clock.now() } else { NEVER };
            return Ok(Permit::new(self, Ticket::counted(word.generation(), started, NEVER)));
        }
        self.admit_unusual(word, self.clock.now(), NEVER).map(|ticket| Permit::new(self, ticket))
    }

    /// Asks whether a call may pass that is given up after `budget`. Its duration is watched, so that a call which nobody waits for to the
    /// end can be judged. The permit keeps the breaker by this handle: a reference, say, or an `Arc` to leave the scope with.
    ///
    /// # Errors
    /// When it may not.
    #[inline]
    pub fn admit_by<B: Deref<Target = Self>>(handle: B, budget: Option<Duration>) -> Result<Permit<B>, Rejected> {
        let ticket = handle.ticket(budget)?;
        Ok(Permit::new(handle, ticket))
    }

    /// Whether it would refuse a call now, as far as can be told without asking: a balancer passes it over.
    #[must_use]
    pub fn refuses_now(&self) -> bool {
        let word = self.word();
        let before = |until: &super::sync::AtomicU64| self.clock.now() < until.load(SeqCst);
        match (word.over(), word.state()) {
            (Override::ForcedOpen, _) => true,
            (Override::None, State::Open) => before(&self.hot.open_until),
            (Override::None, State::HalfOpen) => before(&self.hot.full_until),
            _ => false,
        }
    }

    /// Whether it takes whoever is called for well, as of the last call, or an operator does: what is asked then is more than a few probes.
    #[must_use]
    pub fn trusts(&self) -> bool {
        let word = self.word();
        match word.over() {
            Override::None => matches!(word.state(), State::Closed | State::Recovering),
            Override::ForcedOpen => false,
            Override::ForcedClosed | Override::MetricsOnly | Override::Shadow => true,
        }
    }

    /// Whether an operator keeps calls away from it. A balancer that has nobody left but those it passes over asks none of these either.
    #[must_use]
    pub fn is_forced_open(&self) -> bool {
        self.word().over() == Override::ForcedOpen
    }

    #[inline]
    fn ticket(&self, budget: Option<Duration>) -> Result<Ticket, Rejected> {
        let word = Word::from_bits(self.hot.word.load(SeqCst));
        let now = self.clock.now();
        let deadline = budget.map_or(NEVER, |budget| now.saturating_add(nanos(budget)));
        if word.plainly_closed() {
            return Ok(Ticket::counted(word.generation(), now, deadline));
        }
        self.admit_unusual(word, now, deadline)
    }

    /// The way of a call when the circuit is anything but plainly closed.
    #[cold]
    fn admit_unusual(&self, word: Word, now: u64, deadline: u64) -> Result<Ticket, Rejected> {
        let counted = || Ok(Ticket::counted(word.generation(), now, deadline));
        match word.over() {
            Override::ForcedOpen => {
                self.counters.reject(Reason::ForcedOpen);
                return Err(rejected(Reason::ForcedOpen, ASK_AGAIN, word));
            }
            Override::ForcedClosed => return Ok(Ticket::unseen()),
            Override::MetricsOnly => return counted(),
            Override::None | Override::Shadow => {}
        }
        match word.state() {
            State::Closed if word.throttles() && self.is_too_much(word, now) => {
                self.refuse(word, Reason::Throttled, nanos(ASK_AGAIN), now, deadline)
            }
            State::Closed => counted(),
            State::Open => match self.hot.open_until.load(SeqCst).checked_sub(now) {
                None | Some(0) => self.admit_under_lock(word, now, deadline),
                Some(left) => self.refuse(word, Reason::Open, left, now, deadline),
            },
            State::HalfOpen => match self.hot.full_until.load(SeqCst).checked_sub(now) {
                None | Some(0) => self.admit_under_lock(word, now, deadline),
                Some(left) => self.refuse(word, Reason::HalfOpenSaturated, left, now, deadline),
            },
            State::Recovering if self.ramp_is_over(now) => self.admit_under_lock(word, now, deadline),
            State::Recovering if self.in_share(now) => counted(),
            State::Recovering => self.refuse(word, Reason::Recovering, nanos(ASK_AGAIN), now, deadline),
        }
    }

    /// Moves the state on if its time has come, then asks again what it says.
    fn admit_under_lock(&self, seen: Word, now: u64, deadline: u64) -> Result<Ticket, Rejected> {
        let mut moved = None;
        let answer = {
            let mut cold = lock(&self.cold);
            let word = self.word();
            if word.over() != seen.over() {
                drop(cold);
                // An operator was first.
                return self.admit_unusual(word, now, deadline);
            }
            match word.state() {
                // Another thread has moved it meanwhile.
                State::Closed => Ok(Ticket::counted(word.generation(), now, deadline)),
                State::Recovering if self.ramp_is_over(now) => {
                    let transition = self.close(&mut cold, now);
                    moved = Some(transition);
                    Ok(Ticket::counted(transition.generation, now, deadline))
                }
                State::Recovering => Ok(Ticket::counted(word.generation(), now, deadline)),
                State::Open => {
                    let left = self.hot.open_until.load(SeqCst).saturating_sub(now);
                    if left > 0 {
                        Err((Reason::Open, left))
                    } else {
                        moved = Some(self.half_open(&mut cold, now));
                        self.lend(&mut cold, now, deadline)
                    }
                }
                State::HalfOpen => match self.expire(&mut cold, now, &mut moved) {
                    // The leases that ended may have opened or closed it.
                    State::HalfOpen => self.lend(&mut cold, now, deadline),
                    State::Open => Err((Reason::Open, self.hot.open_until.load(SeqCst).saturating_sub(now))),
                    State::Closed | State::Recovering => Ok(Ticket::counted(self.word().generation(), now, deadline)),
                },
            }
        };
        moved.into_iter().for_each(|transition| self.announce(transition));
        answer.or_else(|(reason, left)| self.refuse(self.word(), reason, left, now, deadline))
    }

    /// Takes back what leases have ended, and answers the state after it.
    fn expire(&self, cold: &mut Cold, now: u64, moved: &mut Option<Transition>) -> State {
        let (expired, verdict) = cold.half_open.expire(&cold.config, now);
        self.counters.probe_timeouts.add(expired);
        *moved = self.obey(cold, verdict, now);
        self.word().state()
    }

    /// Makes the transition that a verdict asks for.
    pub(super) fn obey(&self, cold: &mut Cold, verdict: Verdict, now: u64) -> Option<Transition> {
        let (_, ok, bad) = cold.half_open.counts();
        let counts = Counts { total: ok + bad, failures: bad, slow: 0 };
        match verdict {
            Verdict::Pending => None,
            Verdict::Close => Some(self.recover(cold, now)),
            Verdict::Open => Some(self.open(cold, Cause::Probes, counts, now)),
            Verdict::Hung => Some(self.open(cold, Cause::ProbeTimeout, counts, now)),
        }
    }

    /// Lends a permit, or says why not and for how long.
    fn lend(&self, cold: &mut Cold, now: u64, deadline: u64) -> Result<Ticket, (Reason, u64)> {
        let Cold { config, half_open, .. } = cold;
        let (timeout, budget) = (now.saturating_add(nanos(config.probe_timeout)), deadline.saturating_sub(now));
        // Whose deadline comes says so itself, perhaps after this clock: that is a failure, and no hung probe.
        let ends = if deadline <= timeout { deadline.saturating_add(margin(budget)) } else { timeout };
        // Whoever allows next to no time does not find out whether the peer hangs.
        let blames = budget >= nanos(config.min_blame);
        match half_open.lend(config, ends.max(now.saturating_add(1)), blames) {
            Ok(lease) => {
                self.counters.probes_lent.add(1);
                Ok(Ticket::probe(self.word().generation(), lease, now, deadline))
            }
            Err(until) => {
                self.hot.full_until.store(until, SeqCst);
                Err((Reason::HalfOpenSaturated, until.saturating_sub(now)))
            }
        }
    }

    /// Refuses, or lets a shadow pass and counts that it would have.
    fn refuse(&self, word: Word, reason: Reason, left: u64, now: u64, deadline: u64) -> Result<Ticket, Rejected> {
        if word.over() == Override::Shadow {
            self.counters.would_reject.add(1);
            return Ok(Ticket::shadow(word.generation(), now, deadline));
        }
        self.counters.reject(reason);
        let left = Duration::from_nanos(left);
        // A lease ends when its probe must be back. Most are long before, and may close the circuit.
        let wait = if reason == Reason::HalfOpenSaturated { left.min(ASK_AGAIN) } else { left };
        Err(rejected(reason, wait, word))
    }

    /// Whether a throttle refuses this request, which is noted: what is refused was asked for all the same.
    fn is_too_much(&self, word: Word, now: u64) -> bool {
        let window = self.hot.windows.get(word.window());
        let Some((requests, accepted)) = window.requests(word.generation(), now) else { return false };
        let refused = self.hot.rules.throttles(requests, accepted, || self.draw());
        if refused {
            window.record_refused(word.generation(), now);
        }
        refused
    }

    /// Multiples of the golden ratio fall evenly, without a random number.
    fn draw(&self) -> u32 {
        self.hot.asked.fetch_add(1, SeqCst).wrapping_mul(0x9e37_79b9)
    }

    fn ramp_is_over(&self, now: u64) -> bool {
        let since = now.saturating_sub(self.hot.ramp_from.load(SeqCst));
        since >= self.hot.ramp_nanos.load(SeqCst)
    }

    /// Whether this call is in the share that passes: a tenth at first, all at the end, spread evenly.
    fn in_share(&self, now: u64) -> bool {
        let since = now.saturating_sub(self.hot.ramp_from.load(SeqCst));
        let ramp = self.hot.ramp_nanos.load(SeqCst).max(1);
        let share = (u128::from(since) << 32) / u128::from(ramp);
        let share = u64::try_from(share).unwrap_or(u64::MAX).max((1 << 32) / 10);
        u64::from(self.draw()) < share
    }
}

const fn rejected(reason: Reason, retry_after: Duration, word: Word) -> Rejected {
    Rejected { reason, retry_after, generation: word.generation() }
}
