//! What somebody is told of sagas at once. Where an address leads to another server all of them meet the same at the same step: that is a
//! line a second, and not one a call.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::{
    saga::machine::{Alert, IS_STUCK},
    told::Told,
};

/// The alerts of a process's sagas.
#[derive(Debug, Default)]
pub(super) struct Alerts(Mutex<HashMap<Matter, Since>>);

/// What is the matter: of which type, with which step, and what.
type Matter = (&'static str, &'static str, &'static str);

#[derive(Debug, Default)]
struct Since {
    /// How often it came since it was told of.
    times: u64,
    told: Told,
}

impl Alerts {
    /// Counts an alert of a saga of this type, and answers how many of its like there are since one was told of, if it is to be told: none
    /// was just now. A saga that is stuck is told of each time, for each is somebody's to settle.
    pub(super) fn count(&self, saga_type: &'static str, alert: &Alert) -> Option<u64> {
        if alert.what == IS_STUCK {
            return Some(1);
        }
        let mut matters = self.0.lock();
        let since = matters.entry((saga_type, alert.step, alert.what)).or_default();
        since.times += 1;
        since.told.is_due().then(|| std::mem::take(&mut since.times))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_matter_is_told_of_once_a_second_with_how_often_it_came_and_each_saga_that_is_stuck() {
        let alerts = Alerts::default();
        let count = |saga, step, what| alerts.count(saga, &Alert { what, step, error: String::new() });
        let counts = |times: usize| (0..times).filter_map(|_| count("order", "ship", "slow")).collect::<Vec<_>>();
        assert_eq!(counts(100), [1]);
        assert_eq!(count("return", "ship", "slow"), Some(1));
        assert_eq!(count("order", "charge", "slow"), Some(1));
        assert_eq!(count("order", "ship", "gone"), Some(1));
        assert_eq!([(); 3].map(|()| count("order", "ship", IS_STUCK)), [Some(1); 3]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(counts(100), [100]);
    }
}
