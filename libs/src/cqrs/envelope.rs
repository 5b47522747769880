//! An event as it travels between services, and back.

use proto::events::v1 as pb;

use crate::{
    journal::Event,
    time::{micros, timestamp},
};

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
    let time_micros = time.as_ref().map_or(0, micros);
    Event { position, kind, id, version: version.unsigned_abs(), name, payload, cause, traceparent, time_micros }
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn a_time_that_is_none_is_the_last_one_there_is() {
        let time = Some(Timestamp { seconds: i64::MAX, nanos: 999_999_999 });
        assert_eq!(open(pb::Event { time, ..pb::Event::default() }).time_micros, i64::MAX);
        let time = Some(Timestamp { seconds: i64::MIN, nanos: i32::MIN });
        assert_eq!(open(pb::Event { time, ..pb::Event::default() }).time_micros, i64::MIN);
    }
}
