//! Entries as bytes: encoding one, and finding all whole ones.

use super::ENTRY_BYTES_MAX;

/// Bytes before a payload: length, sequence, checksum.
pub(super) const HEADER_BYTES: usize = 4 + 8 + 4;

/// What a journal's bytes hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Payloads of the whole entries from the start on.
    pub(super) payloads: Vec<Vec<u8>>,
    /// Bytes those entries take.
    pub(super) whole: usize,
    /// Sequence number the next entry gets.
    pub(super) next_sequence: u64,
    /// A whole entry stands somewhere behind the first damaged byte.
    pub(super) entry_after_damage: bool,
}

/// One entry. The payload is at most [`ENTRY_BYTES_MAX`] long, which fits a u32.
pub(super) fn encode(sequence: u64, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= ENTRY_BYTES_MAX);
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&checksum(length, sequence, payload).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads entries until the first that is not whole.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut payloads = Vec::new();
    let mut whole = 0;
    let mut next_sequence = None;
    while let Some((sequence, payload)) = decode(&bytes[whole..]) {
        if next_sequence.is_some_and(|next| next != sequence) {
            break;
        }
        whole += HEADER_BYTES + payload.len();
        payloads.push(payload.to_vec());
        next_sequence = Some(sequence + 1);
    }
    let next_sequence = next_sequence.unwrap_or(1);
    let entry_after_damage = (whole + 1..bytes.len()).any(|offset| {
        decode(&bytes[offset..]).is_some_and(|(sequence, _)| sequence > next_sequence)
    });
    Scan {
        payloads,
        whole,
        next_sequence,
        entry_after_damage,
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length);
    let sequence = u64::from_be_bytes(*sequence);
    if length == 0 || length as usize > ENTRY_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..length as usize)?;
    (checksum(length, sequence, payload) == u32::from_be_bytes(*crc)).then_some((sequence, payload))
}

fn checksum(length: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_be_bytes());
    hasher.update(&sequence.to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}
