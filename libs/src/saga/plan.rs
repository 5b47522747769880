//! What the machine knows of a definition: its steps and how they are called, without the functions that make their requests.

use std::time::Duration;

use proto::saga::v1::{LockPolicy, StepKind};
use tonic::Code;

use crate::rpc::verdict::Op;

/// A set of steps, one bit each.
pub(super) type Steps = u64;

/// The steps of a set, in the definition's order.
pub(super) fn each(mut steps: Steps) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let step = (steps != 0).then(|| steps.trailing_zeros() as usize)?;
        steps &= steps - 1;
        Some(step)
    })
}

/// What the machine knows of a definition.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The saga's type.
    pub(super) name: &'static str,
    pub(super) version: u32,
    /// What is pinned in each saga: all of this, without the options, deadlines and locks, which may be tuned at any time.
    pub(super) hash: [u8; 32],
    pub(super) steps: Vec<StepPlan>,
    /// How long a saga may take to its pivot.
    pub(super) deadline: Option<Duration>,
    /// True if work of our own ends a compensated saga.
    pub(super) has_ending: bool,
    /// Whether its sagas lock business keys, and what becomes of one that finds them locked.
    pub(super) locks: LockPolicy,
}

/// What the machine knows of a step.
#[derive(Clone, Debug)]
pub(super) struct StepPlan {
    pub(super) name: &'static str,
    pub(super) kind: StepKind,
    /// The steps that must be done before it.
    pub(super) after: Steps,
    /// All the steps that come after it, near and far.
    pub(super) descendants: Steps,
    pub(super) participant: &'static str,
    pub(super) action: &'static str,
    pub(super) compensation: &'static str,
    /// The hash of the definition whose saga takes the step. None where a participant does, or the service itself.
    pub(super) saga: Option<[u8; 32]>,
    pub(super) options: StepOptions,
}

impl Plan {
    /// The steps that sagas of their own take.
    pub(super) fn sagas(&self) -> Steps {
        let sagas = self.steps.iter().enumerate().filter(|(_, step)| step.is_saga());
        sagas.fold(0, |steps, (at, _)| steps | 1 << at)
    }
}

impl StepPlan {
    /// True if a saga of its own takes the step.
    pub(super) fn is_saga(&self) -> bool {
        self.saga.is_some()
    }

    /// True if a participant takes the step.
    pub(super) fn is_remote(&self) -> bool {
        !self.is_local() && !self.is_saga()
    }

    /// True if the coordinator's own service takes the step.
    pub(super) fn is_local(&self) -> bool {
        self.action.is_empty()
    }

    /// The method that does or undoes it.
    pub(super) fn path(&self, op: Op) -> &'static str {
        match op {
            Op::Action => self.action,
            Op::Compensation => self.compensation,
        }
    }

    /// True if the saga may still turn back because of this step.
    pub(super) fn can_abort(&self) -> bool {
        matches!(self.kind, StepKind::Check | StepKind::Compensatable)
    }

    /// True if an OK counts only with a verdict. What has no effect needs no barrier: a query may answer a check. And who trusts codes
    /// calls a participant that knows no verdicts.
    pub(super) fn expects_verdicts(&self) -> bool {
        self.kind != StepKind::Check && !self.options.plain && self.options.trusted.is_empty()
    }
}

/// How a step's calls are made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StepOptions {
    pub(super) attempt_timeout: Duration,
    pub(super) retry: Retry,
    pub(super) deadline: Option<Duration>,
    pub(super) trusted: Vec<Code>,
    /// True for a participant without our barrier.
    pub(super) plain: bool,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(5),
            retry: Retry::default(),
            deadline: None,
            trusted: Vec::new(),
            plain: false,
        }
    }
}

/// When a failed call is made again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// The first wait.
    pub initial: Duration,
    /// The longest wait.
    pub most: Duration,
    /// Each wait is this many times the one before.
    pub factor: f64,
    /// How much of a wait is left to chance, 0 to 1, so that many sagas don't call at once.
    pub jitter: f64,
    /// After so many calls a Check or Compensatable step is given up and the saga turns back. None never gives up; nor is a step given up at a
    /// call that no participant answered as one, such as with UNIMPLEMENTED or an OK without a verdict: what is set up wrong is to be mended.
    pub attempts: Option<u32>,
}

impl Default for Retry {
    /// 100 ms, doubling up to 10 s, half of it chance, for ever.
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            most: Duration::from_secs(10),
            factor: 2.0,
            jitter: 0.5,
            attempts: None,
        }
    }
}

impl Retry {
    /// The wait after so many failures. `roll` is the chance, 0 to 1.
    pub(super) fn delay(&self, failures: u32, roll: f64) -> Duration {
        let power = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let full = self.initial.as_secs_f64() * self.factor.max(1.0).powi(power);
        let capped = full.min(self.most.as_secs_f64());
        let seconds = capped * (1.0 - self.jitter.clamp(0.0, 1.0) * roll.clamp(0.0, 1.0));
        Duration::try_from_secs_f64(seconds).unwrap_or(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_chance_only_shortens_them() {
        let retry = Retry::default();
        let millis: Vec<_> = [1, 2, 3, 20, u32::MAX].map(|n| retry.delay(n, 0.0).as_millis()).into();
        assert_eq!(millis, [100, 200, 400, 10_000, 10_000]);
        assert_eq!(retry.delay(1, 1.0).as_millis(), 50);
    }

    #[test]
    fn a_set_gives_its_steps_in_order() {
        assert_eq!(each(0b1001_0010).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!(each(1 << 63).collect::<Vec<_>>(), [63]);
    }
}
