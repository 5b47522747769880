//! A record and its transition, written together: what both hold is encoded once.

use bytes::Bytes;
use prost::{
    Message as _,
    encoding::{bool, message, uint32},
};
use proto::saga::v1::Step;

use super::{Record, Unsaved};
use crate::saga::plan::each;

/// The fields of `saga.v1` that are written one by one.
mod field {
    use prost::encoding::{WireType, encode_key, encode_varint};

    pub(super) const SAGA_STEPS: u32 = 7;
    pub(super) const RECORD_SAGA: u32 = 1;
    pub(super) const TRANSITION_SAGA: u32 = 1;
    pub(super) const TRANSITION_STEPS: u32 = 2;
    pub(super) const TRANSITION_HISTORY: u32 = 3;
    pub(super) const TRANSITION_REPLACES_LAST: u32 = 4;
    pub(super) const CHANGE_INDEX: u32 = 1;
    pub(super) const CHANGE_STEP: u32 = 2;
    /// The most bytes that announce a field.
    pub(super) const ROOM: usize = 12;

    /// Begins a field that is a message of this length.
    pub(super) fn announce(field: u32, length: usize, buffer: &mut Vec<u8>) {
        encode_key(field, WireType::LengthDelimited, buffer);
        encode_varint(length as u64, buffer);
    }

    /// A field that is a message, encoded already.
    pub(super) fn put(field: u32, message: &[u8], buffer: &mut Vec<u8>) {
        announce(field, message.len(), buffer);
        buffer.extend_from_slice(message);
    }
}

impl Record {
    /// Has the next transition tell of every step: who follows them may have lost some.
    pub(in crate::saga) fn tell_all_steps(&mut self) {
        self.unsaved.steps = (0..self.saga.steps.len()).fold(0, |steps, step| steps | 1 << step);
        // What its last line stands in for may be among them.
        self.unsaved.replaces_last = false;
    }

    /// Encodes what changed since it was last [`saved`](Self::saved), as a [`SagaTransition`](proto::saga::v1::SagaTransition), and the whole record, to be stored together.
    pub(in crate::saga) fn encode(&mut self) -> (Bytes, Bytes) {
        let Unsaved { steps: changed, lines, replaces_last, .. } = self.unsaved;
        let history = std::mem::take(&mut self.saga.history);
        let steps = std::mem::take(&mut self.saga.steps);
        // A message's fields may come in any order and parts: what both hold is encoded once.
        let mut saga = Vec::with_capacity(1 << 10);
        self.saga.encode_raw(&mut saga);
        let head = saga.len();
        message::encode_repeated(field::SAGA_STEPS, &steps, &mut saga);

        let mut record = Vec::with_capacity(saga.len() + self.kept.encoded_len() + field::ROOM);
        field::put(field::RECORD_SAGA, &saga, &mut record);
        self.kept.encode_raw(&mut record);

        let change = |at: usize| (u32::try_from(at).unwrap_or(u32::MAX), &steps[at]);
        let index_length = |index: u32| if index == 0 { 0 } else { uint32::encoded_len(field::CHANGE_INDEX, &index) };
        let length = |(index, step): (u32, &Step)| index_length(index) + message::encoded_len(field::CHANGE_STEP, step);
        let new = &history[history.len() - lines..];
        // To the byte or a few more: the log's last events stay in memory as they are made here.
        let changes: usize = each(changed).map(|at| length(change(at)) + field::ROOM).sum();
        let lines = message::encoded_len_repeated(field::TRANSITION_HISTORY, new);
        let mut transition = Vec::with_capacity(head + changes + lines + 2 * field::ROOM);
        field::put(field::TRANSITION_SAGA, &saga[..head], &mut transition);
        for (index, step) in each(changed).map(change) {
            field::announce(field::TRANSITION_STEPS, length((index, step)), &mut transition);
            // As prost writes it, to the byte: who reads events takes what is longer for a newer version's.
            if index != 0 {
                uint32::encode(field::CHANGE_INDEX, &index, &mut transition);
            }
            message::encode(field::CHANGE_STEP, step, &mut transition);
        }
        message::encode_repeated(field::TRANSITION_HISTORY, new, &mut transition);
        if replaces_last {
            bool::encode(field::TRANSITION_REPLACES_LAST, &replaces_last, &mut transition);
        }

        self.saga.steps = steps;
        self.saga.history = history;
        (transition.into(), record.into())
    }
}
