//! An event as it travels between services, and back.

use proto::events::v1 as pb;

use crate::{journal::Event, time::timestamp};

/// The event, to be sent.
pub(super) fn seal(event: Event) -> pb::Event {
    let Event { position, kind, id, version, name, payload, cause, traceparent, time_micros } = event;
    let (kind, name) = (kind.into_owned(), name.into_owned());
    let (version, time) = (i64::try_from(version).unwrap_or(i64::MAX), Some(timestamp(time_micros)));
    pb::Event { position, kind, id, version, name, payload, cause, traceparent, time }
}

/// The event, as it was before it was sent.
pub(super) fn open(event: pb::Event) -> Event {
    let pb::Event { position, kind, id, version, name, payload, cause, traceparent, time } = event;
    let (kind, name) = (kind.into(), name.into());
    let time_micros = time.map_or(0, |time| time.seconds.saturating_mul(1_000_000) + i64::from(time.nanos) / 1_000);
    Event { position, kind, id, version: version.unsigned_abs(), name, payload, cause, traceparent, time_micros }
}
