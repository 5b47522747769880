//! The states, and the one word that holds them.

/// Where the circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few probes pass to find out.
    HalfOpen,
    /// A growing share of calls passes.
    Recovering,
}

/// An operator's word, which stands above the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Override {
    /// The state decides.
    #[default]
    None,
    /// Every call is refused.
    ForcedOpen,
    /// Every call passes and nothing is recorded.
    ForcedClosed,
    /// Every call passes and is recorded; the state never changes.
    MetricsOnly,
    /// Every call passes; the state changes as if it were obeyed, and would-be refusals are counted.
    Shadow,
}

/// Why a circuit opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Too many failures in a row.
    Consecutive,
    /// Too large a share of the window failed.
    FailureRate,
    /// Too large a share of the window was slow.
    SlowRate,
    /// The probes did not succeed.
    Probes,
    /// A probe never came back.
    ProbeTimeout,
}

/// A change of state, reset or override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state after: the same as before when an override was set.
    pub to: State,
    /// The generation that began.
    pub generation: u32,
    /// Why it opened, if it did.
    pub cause: Option<Cause>,
    /// The override in force after it.
    pub over: Override,
}

/// State, override, window and generation in one word, so that a single load tells all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    const STATES: [State; 4] = [State::Closed, State::Open, State::HalfOpen, State::Recovering];
    const OVERRIDES: [Override; 8] = [
        Override::None,
        Override::ForcedOpen,
        Override::ForcedClosed,
        Override::MetricsOnly,
        Override::Shadow,
        Override::None,
        Override::None,
        Override::None,
    ];

    const THROTTLES: u64 = 1 << 5;

    /// `window` is which of the breaker's windows is in use.
    pub(crate) const fn new(state: State, over: Override, window: u8, generation: u32) -> Self {
        Self((generation as u64) << 32 | (window as u64) << 8 | (over as u64) << 2 | state as u64)
    }

    /// The same, where a closed circuit refuses some calls or doesn't.
    pub(crate) const fn throttling(self, throttles: bool) -> Self {
        Self(self.0 & !Self::THROTTLES | if throttles { Self::THROTTLES } else { 0 })
    }

    pub(crate) const fn throttles(self) -> bool {
        self.0 & Self::THROTTLES != 0
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn state(self) -> State {
        Self::STATES[(self.0 & 0b11) as usize]
    }

    pub(crate) const fn over(self) -> Override {
        Self::OVERRIDES[(self.0 >> 2 & 0b111) as usize]
    }

    pub(crate) const fn window(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub(crate) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Closed, and nothing is to be asked: the way of nearly every call.
    pub(crate) const fn plainly_closed(self) -> bool {
        self.0 & 0b11_1111 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_what_it_was_made_of() {
        for state in Word::STATES {
            for over in &Word::OVERRIDES[..5] {
                for generation in [0, 1, u32::MAX] {
                    let word = Word::new(state, *over, 7, generation);
                    assert_eq!((word.state(), word.over()), (state, *over));
                    assert_eq!((word.window(), word.generation()), (7, generation));
                    assert_eq!(word.plainly_closed(), (state, *over) == (State::Closed, Override::None));
                    let throttling = word.throttling(true);
                    assert!(throttling.throttles() && !throttling.plainly_closed());
                    assert_eq!(throttling.throttling(false), word);
                }
            }
        }
    }
}
