//! What is parked here: why, and since when.

use proto::saga::v1::ParkedSaga;

use super::{Coordinator, live::Place};
use crate::{refusal::Refusal, saga::record::shorten, time::timestamp};

impl Coordinator {
    /// At most so many of the sagas that are parked here, by id, after one of them: this process's own, and those that nobody drives and
    /// that it passed by.
    #[must_use]
    pub(in crate::saga) fn parked_after(&self, after: &str, most: usize) -> Vec<ParkedSaga> {
        let page = self.0.live.parked_after(after, most).into_iter();
        page.filter_map(|(saga_id, place)| shown(&saga_id, &place)).collect()
    }

    /// How a saga is parked here, if it is.
    #[must_use]
    pub(in crate::saga) fn parked_as(&self, saga_id: &str) -> Option<ParkedSaga> {
        shown(saga_id, &self.0.live.parked_as(saga_id)?)
    }
}

/// For a saga that is stored and open.
pub(super) fn parked(saga_id: &str, why: &str) -> Refusal {
    let mend = "mend that, then retry the saga or restart; or force-close it to leave it as it is for ever";
    Refusal::precondition("SAGA_PARKED", format!("saga {saga_id} is parked: {why}; {mend}"))
}

fn shown(saga_id: &str, place: &Place) -> Option<ParkedSaga> {
    let (parked, orphan) = match place {
        Place::Parked(parked) => (parked, false),
        Place::Orphan(parked) => (parked, true),
        Place::Driven(_) | Place::Reserved(_) => return None,
    };
    let park_time = Some(timestamp(parked.since_micros));
    Some(ParkedSaga { saga_id: saga_id.to_owned(), error: shorten(&parked.why), park_time, orphan })
}
